"""What the names of a model's files say: its quant, and the parts that it is split into.

Owns how these names are read, as publishers write them. Pure. ``hub``, ``pull`` and ``importing`` use it.
"""

import re

_SPLIT = re.compile(r"(?P<stem>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_QUANT = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|BF16|FP?16|FP?32|MXFP4\w*))(?=[-.])", re.IGNORECASE
)


def quant_of(path: str) -> str | None:
    """The quant that a file's path names ("Q4_K_M"), if it names one."""
    found = _QUANT.findall(path)
    return found[-1].upper() if found else None


def is_first_part(name: str) -> bool:
    """Whether a model begins with this file; what is not split does."""
    split = _SPLIT.fullmatch(name)
    return split is None or int(split["index"]) == 1


def split_paths(path: str) -> tuple[tuple[str, ...], str]:
    """All parts of the model that the file is of, by their names alone, and what their names share."""
    split = _SPLIT.fullmatch(path)
    if split is None:
        return (path,), re.sub(r"\.gguf$", "", path, flags=re.IGNORECASE)
    stem, count = split["stem"], int(split["count"])
    return tuple(f"{stem}-{index:05}-of-{count:05}.gguf" for index in range(1, count + 1)), stem
