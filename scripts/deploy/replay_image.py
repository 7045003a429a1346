"""Replays the CPU image's Dockerfile without a container engine, and tries what came out.

Owns the reading of the few instructions that the file has, and where its folders lie here: below one fresh
folder. What needs the image's own system (apt-get, useradd) is named and not run. Then the server runs as a
user without rights, in a tree that it cannot write, with a mounted store and an empty home, and must answer.
Compiling llama.cpp takes about ten minutes. Standard library only, so that it runs before anything is there.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
NOBODY = 65534
_FOLDERS = ("/opt/nexa", "/build", "/models", "/state")
_SYSTEM = re.compile(r"\b(apt-get|useradd|install --directory)\b")
"""Words of commands for the image's system; a RUN that has one is not run here."""


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction and its arguments, lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.split(r"(?<!\\)\n", "\n".join(lines)):
        word, _, rest = line.replace("\\\n", " ").partition(" ")
        yield word, rest.strip()


def here(text: str, root: Path) -> str:
    """A command, with the image's folders below ``root``."""
    for folder in _FOLDERS:
        text = re.sub(rf"(?<![\w/.]){re.escape(folder)}\b", f"{root}{folder}", text)
    return text


def replay(root: Path) -> dict[str, str]:
    """Run what can be run; what the image sets in the environment."""
    folder, environment = root, {}
    for word, rest in instructions((SOURCE / "Dockerfile.cpu").read_text()):
        if word == "WORKDIR":
            folder = Path(here(rest, root))
            folder.mkdir(parents=True, exist_ok=True)
        elif word == "ENV":
            environment |= dict(re.findall(r"(\w+)=(\S+)", rest))
        elif word == "COPY" and not rest.startswith("--from="):
            *sources, target = rest.split()
            for source in sources:
                copy(SOURCE / source, folder / target)
        elif word == "RUN" and _SYSTEM.search(rest):
            print(f"not run: RUN {rest[:100]}…", flush=True)
        elif word == "RUN":
            print(f"RUN {rest[:100]}…", flush=True)
            subprocess.run(["sh", "-ec", here(rest, root)], cwd=folder, check=True)
        elif word not in ("ARG",):
            print(f"not run: {word} {rest[:100]}", flush=True)
    return {name: here(value, root) for name, value in environment.items()}


def copy(source: Path, target: Path) -> None:
    """As COPY does: a file into a folder, a folder as another."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def try_server(root: Path, environment: dict[str, str]) -> None:
    """Serve as nobody from a tree that cannot be written, and ask it once."""
    for name in ("models", "state", "home"):
        (root / name).mkdir()
        if os.getuid() == 0:
            os.chown(root / name, NOBODY, NOBODY)
    subprocess.run(["chmod", "-R", "a-w,a+rX", str(root / "opt")], check=True)
    root.chmod(0o755)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # On loopback without keys, where the image listens everywhere and wants them.
    environment |= {"NEXA_PORT": str(port), "NEXA_HOST": "127.0.0.1", "HOME": str(root / "home")}
    environment["PATH"] = f"{root}/opt/nexa/bin:{os.environ['PATH']}"
    identity = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    process = subprocess.Popen(["nexa-runtime", "serve"], cwd="/", env=environment, **identity)
    try:
        wait_ready(port, process)
        body = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
        answer = ask(f"http://127.0.0.1:{port}/v1/chat/completions", body)
        print(answer["choices"][0]["message"]["content"])
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    written = [str(path) for path in (root / "home").rglob("*")]
    print(f"exit code {code}; in its home: {written or 'nothing'}")
    if code or written or "Paris" not in str(answer):
        sys.exit("replay_image: the server did not do as it should.")


def wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until it takes requests."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=4).close()
            return
        except OSError:
            time.sleep(0.2)
    sys.exit("replay_image: the server did not become ready.")


def ask(url: str, body: object) -> dict[str, list[dict[str, dict[str, str]]]]:
    """The JSON that a POST of JSON is answered with."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, list[dict[str, dict[str, str]]]] = json.load(response)
        return found


def main() -> None:
    """Replay into the folder that is named, which must be empty, or into a temporary one."""
    if len(sys.argv) > 2 or (sys.argv[1:2] and sys.argv[1].startswith("-")):
        sys.exit("usage: scripts/deploy/replay_image [FOLDER]")
    if len(sys.argv) > 1:
        root = Path(sys.argv[1]).resolve()
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            sys.exit(f"replay_image: {root} is not empty.")
        try_server(root, replay(root))
        return
    with tempfile.TemporaryDirectory(prefix="nexa-image-") as folder:
        root = Path(folder)
        try_server(root, replay(root))
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)


if __name__ == "__main__":
    main()
