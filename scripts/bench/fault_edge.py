"""Faults at the edge: sockets that say nothing, bodies that are wrong, readers that do not read.

As ``fault_ends``.
"""

import asyncio
import os
import socket
import statistics
import time
from pathlib import Path

from scripts.bench.answers import problem_of_refusal
from scripts.bench.child import CHAT, Child, chat, expect, until
from scripts.bench.process import held_by
from scripts.bench.raw import request_bytes

HEADER_TIMEOUT_S = 5
BODY_TIMEOUT_S = 3
MAX_FILES = 128
_SLOW_S = 60.0
_MAX_GROWTH_MB = 30.0


async def slow_reader(child: Child) -> str:
    """A client that reads a byte a second for a minute beside eight normal streams."""
    await child.ready()
    alone = await _normal_streams(child, 8, 10.0)
    before = held_by(child.process.pid).rss_mb
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", child.port))
    slow.sendall(request_bytes(CHAT, chat(stream=True, ignore_eos=True, max_tokens=4000)))
    slow.setblocking(False)
    reading = asyncio.create_task(_read_slowly(slow, _SLOW_S))
    beside = await _normal_streams(child, 8, _SLOW_S)
    num_read, is_cut = await reading
    grown = held_by(child.process.pid).rss_mb - before
    slow.close()
    await _until_idle(child)
    ratio = _p95(beside) / _p95(alone)
    expect(ratio <= 2.5, f"the time to first token of the others is {ratio:.2f} times as long")
    expect(grown <= _MAX_GROWTH_MB, f"memory grew by {grown:.1f} MB")
    fate = "was dropped by the server" if is_cut else "was not cut"
    return (
        f"{len(beside)} normal streams were complete, TTFT p95 {_p95(beside) * 1e3:.0f} ms"
        f" ({_p95(alone) * 1e3:.0f} without), memory {grown:+.1f} MB;"
        f" the slow one read {num_read} bytes and {fate}"
    )


async def idle_sockets(child: Child) -> str:
    """500 sockets that say nothing: others are answered, and the sockets are closed."""
    await child.ready()
    before = held_by(child.process.pid).num_files
    sockets = [await asyncio.open_connection("127.0.0.1", child.port) for _ in range(500)]
    started = time.perf_counter()
    answer = await child.ask(chat())
    seconds = time.perf_counter() - started
    expect(answer.status == 200, f"a chat beside them got {answer.status}")
    expect(await child.status("/health") == 200, "/health does not answer")
    text = "the sockets were not closed"
    await until(lambda: held_by(child.process.pid).num_files <= before + 5, HEADER_TIMEOUT_S + 10, text)
    for _, writer in sockets:
        writer.close()
    return f"a chat took {seconds:.2f} s beside them, all were closed by the server"


async def half_header(child: Child) -> str:
    """Half a header and no more: the connection is ended."""
    await child.ready()
    seconds, said = await _talk(child, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConte")
    expect(seconds < HEADER_TIMEOUT_S + 5, f"it was open for {seconds:.1f} s")
    return f"ended after {seconds:.1f} s, {_line(said)}"


async def missing_body(child: Child) -> str:
    """A body that is announced and never comes: 408 in the error shape."""
    await child.ready()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
    seconds, said = await _talk(child, head)
    _check_error(said, 408)
    return f"{_line(said)} after {seconds:.1f} s"


async def large_body(child: Child) -> str:
    """60 MB, announced and in chunks: 413 without taking them in."""
    await child.ready()
    before = held_by(child.process.pid).rss_mb
    size = 60 * 2**20
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    _, announced = await _talk(
        child, f"{head}Content-Length: {size}\r\n\r\n".encode(), b"x" * 2**16, size // 2**16
    )
    piece = b"10000\r\n" + b"x" * 2**16 + b"\r\n"
    _, chunked = await _talk(
        child, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), piece, size // 2**16
    )
    _check_error(announced, 413)
    _check_error(chunked, 413)
    grown = held_by(child.process.pid).rss_mb - before
    expect(grown < _MAX_GROWTH_MB, f"memory grew by {grown:.1f} MB")
    return f"{_line(announced)} and, in chunks, {_line(chunked)}; memory {grown:+.1f} MB"


async def wrong_length(child: Child) -> str:
    """A body shorter and one longer than announced: no request waits for ever, no other is harmed."""
    await child.ready()
    body = b'{"messages": [{"role": "user", "content": "Hello"}]}'
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    _, short = await _talk(child, f"{head}{len(body) + 50}\r\n\r\n".encode() + body)
    _check_error(short, 408)
    _, long = await _talk(child, f"{head}{len(body) - 5}\r\n\r\n".encode() + body)
    _check_error(long, 400)
    answer = await child.ask(chat())
    expect(answer.status == 200, f"the next request got {answer.status}")
    return f"too short: {_line(short)}; too long: {_line(long)}"


async def descriptors(child: Child) -> str:
    """No file descriptor left: the server lives, does not spin, and takes requests again afterwards."""
    await child.ready()
    sockets = [socket.create_connection(("127.0.0.1", child.port)) for _ in range(2 * MAX_FILES)]
    await asyncio.sleep(1.0)
    num_files = held_by(child.process.pid).num_files
    expect(num_files >= MAX_FILES - 3, f"the server has {num_files} descriptors of {MAX_FILES}")
    begin, used_s = time.perf_counter(), _cpu_s(child.process.pid)
    await asyncio.sleep(3.0)
    load = (_cpu_s(child.process.pid) - used_s) / (time.perf_counter() - begin)
    for one in sockets:
        one.close()
    expect(child.process.poll() is None, "the server has ended")
    expect(load < 0.5, f"it took {load:.0%} of a processor meanwhile")
    begin = time.perf_counter()
    answer = await child.ask(chat(), timeout_s=15)
    expect(answer.status == 200, f"afterwards a chat got {answer.status} {answer.error}")
    seconds = time.perf_counter() - begin
    num_lines = child.log.count("\n")
    expect(num_lines < 200, f"{num_lines} lines in the log")
    return f"{load:.0%} of a processor meanwhile; {seconds:.1f} s afterwards a chat was answered"


async def _normal_streams(child: Child, num_clients: int, seconds: float) -> list[float]:
    """Their times to first token; every one of them was complete."""
    end = time.perf_counter() + seconds
    times: list[float] = []

    async def one_client() -> None:
        while time.perf_counter() < end:
            answer = await child.ask(chat(stream=True, ignore_eos=True, max_tokens=24))
            expect(
                answer.status == 200 and b"[DONE]" in answer.body,
                f"a stream got {answer.status} {answer.error}",
            )
            times.append(answer.first_text_s or 0.0)

    await asyncio.gather(*(one_client() for _ in range(num_clients)))
    return times


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1] if len(values) > 1 else values[0]


async def _read_slowly(slow: socket.socket, seconds: float) -> tuple[int, bool]:
    """How many bytes were read, one a second, and whether the server has ended the connection."""
    loop, num_read = asyncio.get_running_loop(), 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        try:
            async with asyncio.timeout(30):
                part = await loop.sock_recv(slow, 1)
        except TimeoutError:
            return num_read, False
        except OSError:
            return num_read, True
        if not part:
            return num_read, True
        num_read += 1
        await asyncio.sleep(1)
    return num_read, False


async def _until_idle(child: Child) -> None:
    deadline = time.perf_counter() + 90
    while (await child.json("/readyz"))["open_requests"]:
        expect(time.perf_counter() < deadline, "a request is still open")
        await asyncio.sleep(0.5)


async def _talk(child: Child, head: bytes, piece: bytes = b"", count: int = 0) -> tuple[float, bytes]:
    """Send, and wait until the server answers or ends the connection; how long that took, what it said."""
    begin = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", child.port)
    said = b""
    try:
        writer.write(head)
        answer = asyncio.create_task(_answer(reader))
        for _ in range(count):
            if answer.done():
                break
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(30):
            said = await answer
    except (OSError, TimeoutError):
        pass
    finally:
        writer.close()
    return time.perf_counter() - begin, said


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """The head of an answer, and as much of a body as it announces."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    _, found, rest = head.lower().partition(b"content-length:")
    return head + (await reader.readexactly(int(rest.split(b"\r\n")[0])) if found else b"")


def _check_error(said: bytes, status: int) -> None:
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    expect(f" {status}" in first, f"the answer is {first!r}, not {status}")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    problem = problem_of_refusal(status, headers, body, CHAT)
    expect(problem is None, str(problem))


def _line(said: bytes) -> str:
    return said.split(b"\r\n", 1)[0].decode("latin-1") or "without a word"


def _cpu_s(pid: int) -> float:
    fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
