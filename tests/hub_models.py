"""What a hub for tests holds: the demo model under several names, quants and revisions, split, and broken.

And how tests ask it: ``hub_of``, ``plan_of``, ``fetch``.
"""

import hashlib
import math
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf

import nexa_runtime
from nexa_runtime.config import load_settings
from nexa_runtime.store.catalog import HubReference
from nexa_runtime.store.hub import Hub, PullPlan
from nexa_runtime.store.store import ModelStore
from tests.hub_standin import HubStandin

DEMO_PATH = Path(nexa_runtime.__file__).parent / "data" / "nexa-demo.gguf"


def demo_hub() -> HubStandin:
    """With the models that tests pull; all but ``nexa/not-a-model`` can be served.

    ``nexa/demo-GGUF``: two quants by name, an mmproj and an imatrix file, tags v1 and v2. ``nexa/many-GGUF``:
    several quants. ``nexa/split-GGUF``: one model in three files. ``nexa/gated-GGUF``, ``nexa/private-GGUF``.
    """
    hub = HubStandin()
    extras = {
        "README.md": b"# Nexa demo\n",
        "imatrix.gguf": b"GGUF imatrix",
        "mmproj-demo-F16.gguf": b"GGUF mmproj",
    }
    hub.put("nexa/demo-GGUF", extras | {"nexa-demo-Q8_0.gguf": demo_bytes(9)}, tag="v1")
    quants = {"nexa-demo-Q4_K_M.gguf": demo_bytes(), "nexa-demo-Q8_0.gguf": demo_bytes(1)}
    hub.put("nexa/demo-GGUF", extras | quants, tag="v2")
    names = ("BF16", "IQ2_XS", "Q2_K", "Q3_K_L", "Q6_K", "Q8_0")
    hub.put("nexa/many-GGUF", {f"demo.{name}.gguf": demo_bytes(index) for index, name in enumerate(names)})
    hub.put("nexa/split-GGUF", {f"Q4_K_M/{name}": data for name, data in split_files().items()})
    hub.put("nexa/not-a-model", {"model-Q4_K_M.gguf": b"<html>no model</html>" * 100})
    hub.put("nexa/no-gguf", {"README.md": b"# nothing\n"})
    hub.put("nexa/gated-GGUF", quants)
    hub.repos["nexa/gated-GGUF"].is_gated = True
    hub.put("nexa/private-GGUF", quants)
    hub.repos["nexa/private-GGUF"].is_private = True
    return hub


@cache
def demo_bytes(variant: int = 0) -> bytes:
    """The demo model; variants 1 to 9 have another name inside, so another hash, and answer the same."""
    data = DEMO_PATH.read_bytes()
    return data.replace(b"Nexa Demo", b"Nexa Dem%d" % variant, 1) if variant else data


@cache
def split_files() -> dict[str, bytes]:
    """The demo model in three files, as ``llama-gguf-split`` makes them."""
    reader = gguf.GGUFReader(DEMO_PATH)
    with TemporaryDirectory() as folder:
        per_file = math.ceil(len(reader.tensors) / 3)
        writer = gguf.GGUFWriter(Path(folder) / "nexa-split.gguf", "llama", split_max_tensors=per_file)
        for name, value in reader.fields.items():
            if not name.startswith("GGUF.") and name != "general.architecture":
                subtype = value.types[-1] if len(value.types) > 1 else None
                writer.add_key_value(name, value.contents(), value.types[0], subtype)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


DEMO = "nexa/demo-GGUF"
SIZE = len(demo_bytes())
SHA256 = hashlib.sha256(demo_bytes()).hexdigest()


class Waits(list[float]):
    """Stands for ``time.sleep``."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def hub_of(standin: HubStandin, waits: Waits, **overrides: object) -> Hub:
    """The real client of a stand-in."""
    settings = {"HF_ENDPOINT": standin.url, "HF_HUB_OFFLINE": "0", **overrides}
    # Only a stall that is ordered may run out, however busy the machine is.
    stall_s = 0.3 if any(fault.kind == "stall" for fault in standin.faults) else 10
    return Hub(load_settings(settings).store, stall_s=stall_s, sleep=waits)


def names_in(folder: Path) -> list[str]:
    """What is in a folder; nothing where there is none."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def assert_tidy(store: ModelStore) -> None:
    """Nothing is left over after ``gc``, and nothing was that counts before it."""
    plan = store.plan_gc()
    assert (plan.blobs, plan.freed_bytes) == ((), 0)
    store.remove(plan)
    assert names_in(store.root / "partial") == []


def plan_of(standin: HubStandin) -> PullPlan:
    """What a pull of the demo model would transfer."""
    return hub_of(standin, Waits()).plan(HubReference(DEMO))


def fetch(standin: HubStandin, partial: Path, waits: Waits, **overrides: object) -> list[str]:
    """Download the demo model's default file; what was said about retries."""
    said: list[str] = []
    plan = plan_of(standin)
    hub_of(standin, waits, **overrides).download(plan, plan.files[0], partial, on_retry=said.append)
    return said
