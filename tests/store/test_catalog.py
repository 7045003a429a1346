"""The catalog, and what may be written to name a model."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nexa_runtime.errors import ConfigError, NotFoundError, UsageError
from nexa_runtime.store.catalog import Catalog, EngineOptions, HubReference, ModelSpec, parse_reference

SEED_NAMES = [
    "llama-3-8b-instruct", "mistral", "mistral:7b-instruct", "mistral:7b-instruct-q4_0",
    "mistral:7b-instruct-q8_0", "deepseek-coder:6.7b", "deepseek-coder:33b", "qwen:7b", "qwen2:7b", "llama3",
    "llama3:8b", "llama3:70b", "codellama", "phi3", "nomic-embed",
]  # fmt: skip
"""Of the seeds' tables and commands."""

GOOD = """\
models:
  - name: mistral:7b
    aliases: [mistral, "Mistral-7B"]
    repo: org/mistral-GGUF
    quant: Q4_K_M
    size_gb: 4
  - name: everything
    repo: org/repo
    file: sub/model-Q8_0.gguf
    revision: refs/pr/7
    sha256: 00000000000000000000000000000000000000000000000000000000000000aa
    context: 8192
    kinds: [embedding]
    engine:
      gpu_layers: 0
      kv_type_k: q8_0
      kv_type_v: f16
      kv: split
      slots: 4
      chat_template: "{{ messages }}"
      lora:
        - path: adapter.gguf
        - {path: /abs/adapter.gguf, scale: 0.5}
      adapters:
        - {name: formal, path: formal.gguf}
        - {name: legal.v2, path: /abs/legal.gguf, scale: -0.5}
    keep_alive: 10m
    preload: true
    memory_hint: 1.5 GB
    verified: true
    description: All fields.
"""
CATALOG_LINE = "  - {name: a, repo: org/repo, %s}"

Load = Callable[[str], Catalog]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models.yaml"


@pytest.fixture
def load(path: Path) -> Load:
    def load(text: str) -> Catalog:
        path.write_text(text)
        return Catalog.load(path)

    return load


@pytest.fixture
def catalog(load: Load) -> Catalog:
    return load(GOOD)


def found(catalog: Catalog, name: str) -> ModelSpec:
    spec = catalog.find(name)
    assert spec is not None
    return spec


def test_the_shipped_catalog_has_every_name_that_was_promised() -> None:
    catalog = Catalog.load(None)
    assert len(catalog.specs()) >= 20
    assert [name for name in SEED_NAMES if catalog.find(name) is None] == []
    kinds = {kind for spec in catalog.specs() for kind in spec.kinds}
    assert kinds == {"chat", "completion", "embedding", "rerank"}
    assert not any(spec.verified for spec in catalog.specs())
    assert all(spec.description and spec.size_gb for spec in catalog.specs())
    assert all(spec.quant or spec.file for spec in catalog.specs())


def test_every_field_is_read(catalog: Catalog, path: Path) -> None:
    spec = found(catalog, "everything")
    assert (spec.repo, spec.file, spec.quant) == ("org/repo", "sub/model-Q8_0.gguf", None)
    assert (spec.revision, spec.sha256, spec.context) == ("refs/pr/7", f"{170:064x}", 8192)
    assert spec.kinds == {"embedding"}
    assert (spec.keep_alive, spec.preload, spec.memory_hint, spec.verified) == (
        600,
        True,
        1_500_000_000,
        True,
    )
    engine = spec.engine
    assert (engine.gpu_layers, engine.kv_type_k, engine.kv_type_v) == (0, "q8_0", "f16")
    assert (engine.kv, engine.slots, engine.chat_template) == ("split", 4, "{{ messages }}")
    assert [(one.path, one.scale) for one in engine.lora] == [
        (str(path.parent / "adapter.gguf"), 1.0),
        ("/abs/adapter.gguf", 0.5),
    ]
    assert [(one.name, one.path, one.scale) for one in engine.adapters] == [
        ("formal", str(path.parent / "formal.gguf"), 1.0),
        ("legal.v2", "/abs/legal.gguf", -0.5),
    ]


def test_what_is_not_written_has_its_default(catalog: Catalog) -> None:
    spec = found(catalog, "mistral")
    assert spec.kinds == {"chat", "completion"}
    assert spec.engine == EngineOptions()
    assert (spec.keep_alive, spec.memory_hint, spec.revision, spec.sha256) == (None, None, None, None)
    assert not spec.preload
    assert not spec.verified


def test_names_go_by_any_case_and_with_latest(catalog: Catalog) -> None:
    spec = found(catalog, "mistral:7b")
    for name in ("mistral", "MISTRAL", "mistral:latest", "mistral-7b", "mistral:7b:latest"):
        assert catalog.find(name) is spec
    assert catalog.find("mistral:8b") is None
    assert [one.name for one in catalog.specs()] == ["mistral:7b", "everything"]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90", 90), ("0", 0), ("-1", -1), ("1.5", 1.5), ("30s", 30), ("5m", 300), ("2h", 7200), ("1d", 86400)],
)
def test_keep_alive_is_seconds(load: Load, written: str, seconds: float) -> None:
    assert found(load(f"models:\n{CATALOG_LINE % f'keep_alive: {written}'}"), "a").keep_alive == seconds


@pytest.mark.parametrize(
    ("written", "num_bytes"), [("1", 1), ("6GB", 6 * 10**9), ("6 G", 6 * 2**30), ("1.5 GiB", 3 * 2**29)]
)
def test_memory_is_bytes(load: Load, written: str, num_bytes: int) -> None:
    assert found(load(f"models:\n{CATALOG_LINE % f'memory_hint: {written}'}"), "a").memory_hint == num_bytes


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ("context: many", "context"),
        ("context: 1", "context"),
        ("contxt: 512", "contxt"),
        ("kinds: [chat, dance]", "kinds.1"),
        ("kinds: []", "kinds"),
        ("kinds: chat", "kinds"),
        ("quant: ../up", "quant"),
        ("quant: 4", "quant"),
        ("file: ../up.gguf", "file"),
        ("file: /etc/x.gguf", "file"),
        ("file: weights.bin", "file"),
        ("revision: ../up", "revision"),
        ("revision: 1234567", "revision"),
        ("sha256: abc", "sha256"),
        ("aliases: [a/b]", "aliases.0"),
        ("aliases: [1]", "aliases.0"),
        ("preload: yess", "preload"),
        ("keep_alive: soon", "keep_alive"),
        ("keep_alive: true", "keep_alive"),
        ("keep_alive: .inf", "keep_alive"),
        ("memory_hint: lots", "memory_hint"),
        ("memory_hint: 0", "memory_hint"),
        ("size_gb: .nan", "size_gb"),
        ("engine: {slots: 0}", "engine.slots"),
        ("engine: {kv_type_k: q9_9}", "engine.kv_type_k"),
        ("engine: {lora: [{path: a, scale: x}]}", "engine.lora.0.scale"),
        ("engine: {adapters: [{name: a}]}", "engine.adapters.0.path"),
        ("engine: {adapters: [{path: a}]}", "engine.adapters.0.name"),
        ('engine: {adapters: [{name: "a:1", path: a}]}', "engine.adapters.0.name"),
        ("engine: {adapters: [{name: a, path: a, scale: 4.1}]}", "engine.adapters.0.scale"),
        ("engine: {adapters: [{name: a, path: a, scale: .nan}]}", "engine.adapters.0.scale"),
        ("engine: {adapters: [{name: a, path: a}, {name: a, path: b}]}", "engine.adapters"),
        ("engine: 7", "engine"),
        ("quant: Q4_0, file: a.gguf", "the entry"),
    ],
)
def test_a_bad_field_is_named_with_file_and_line(load: Load, path: Path, fields: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f"models:\n  - name: good\n    repo: org/repo\n{CATALOG_LINE % fields}\n")
    assert str(caught.value).startswith(f"{path}, line 4: {field}: ")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_the_line_is_that_of_the_field(load: Load, path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 19: engine\.slots: "):
        load(GOOD.replace("slots: 4", "slots: four"))
    with pytest.raises(ConfigError, match=r"line 22: engine\.lora\.0\.path: "):
        load(GOOD.replace("path: adapter.gguf", "path: 7"))
    with pytest.raises(ConfigError, match="line 2: repo: Field required"):
        load("models:\n  - name: a\n")


@pytest.mark.parametrize("name", ["a/b", "", "../a", "-a", '"a b"', "7", "~", '"a\\0"'])
def test_names_are_plain(load: Load, name: str) -> None:
    with pytest.raises(ConfigError, match="line 2: name: "):
        load(f"models:\n  - name: {name}\n    repo: org/repo\n")


@pytest.mark.parametrize(
    "repo", ["org", "org/", "/org", "a/b/c", "../b", "a/..", '"a/b\\n"', "a/b?x", "https://a/b", "a/.b"]
)
def test_repositories_are_org_and_name(load: Load, repo: str) -> None:
    with pytest.raises(ConfigError, match="line 3: repo: must be org/repo"):
        load(f"models:\n  - name: a\n    repo: {repo}\n")


@pytest.mark.parametrize(
    "second", ["name: a", "name: A", "name: a:latest", "name: c, aliases: [B]", "name: b"]
)
def test_two_models_of_one_name_are_an_error(load: Load, path: Path, second: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f"models:\n  - {{name: a, aliases: [b], repo: org/a}}\n  - {{{second}, repo: org/b}}\n")
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert "line 2" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must hold one list"),
        ("[]", "must hold one list"),
        ("models: {}", "must hold one list"),
        ("models: []\nmore: 1", "must hold one list"),
        ("models:\n  - 7", "not a mapping of fields (line 2)"),
        ("models:\n  - {name: a, name: b}", "a key twice (line 2)"),
        ("models:\n  - {[a]: b}", "not a plain word (line 2)"),
        ("models:\n  - name: !!python/object:os.system x", "not valid YAML (line 2)"),
        ("models:\n  - name: !!bool maybe", "not valid YAML"),
        ("models: [", "not valid YAML (line 1)"),
        ("models:\n  - " + "[" * 5_000, "nested too deeply"),
    ],
)
def test_what_is_no_catalog_is_refused(load: Load, path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_catalog_that_cannot_be_read_is_refused(path: Path) -> None:
    for refused, reason in [(path, "No such file"), (path.parent, "regular file"), (Path("a\0"), "NUL")]:
        with pytest.raises(ConfigError, match=reason):
            Catalog.load(refused)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        Catalog.load(path)


def test_an_empty_catalog_knows_nothing(load: Load) -> None:
    assert load("models: []").specs() == ()
    assert Catalog().find("a") is None
    assert Catalog().suggest("a") == []


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("org/repo", HubReference("org/repo")),
        ("  org/repo ", HubReference("org/repo")),
        ("org/Repo.v1-GGUF:Q8_0", HubReference("org/Repo.v1-GGUF", "Q8_0")),
        ("org/repo@main", HubReference("org/repo", revision="main")),
        ("org/repo:Q8_0@v1.0", HubReference("org/repo", "Q8_0", revision="v1.0")),
        ("org/repo@refs/pr/1", HubReference("org/repo", revision="refs/pr/1")),
        ("hf.co/org/repo", HubReference("org/repo")),
        ("HF.co/org/repo:Q4_0@main", HubReference("org/repo", "Q4_0", revision="main")),
        ("hf.co/org/repo:Q4_0@refs/pr/1", HubReference("org/repo", "Q4_0", revision="refs/pr/1")),
        ("huggingface.co/org/repo", HubReference("org/repo")),
        ("https://huggingface.co/org/repo/", HubReference("org/repo")),
        ("https://hf.co/org/repo:Q8_0", HubReference("org/repo", "Q8_0")),
        ("https://huggingface.co/org/repo/tree/v1", HubReference("org/repo", revision="v1")),
        (
            "https://huggingface.co/org/repo/resolve/main/sub/a-Q4_0.gguf?download=true",
            HubReference("org/repo", file="sub/a-Q4_0.gguf", revision="main"),
        ),
        ("hf.co/org/repo/blob/main/a.gguf", HubReference("org/repo", file="a.gguf", revision="main")),
    ],
)
def test_a_repository_is_written_in_many_ways(catalog: Catalog, text: str, reference: HubReference) -> None:
    assert parse_reference(text, catalog) == reference


def test_a_name_of_the_catalog_is_its_model(catalog: Catalog) -> None:
    assert parse_reference("Mistral:latest", catalog) is catalog.find("mistral")


def test_a_path_is_what_looks_like_one(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.gguf").write_bytes(b"")
    assert parse_reference("own.gguf", catalog) == Path("own.gguf")
    for text in ("./a", "../a.gguf", "/a/b.gguf"):
        assert parse_reference(text, catalog) == Path(text)
    assert parse_reference("~/a.gguf", catalog) == Path.home() / "a.gguf"
    with pytest.raises(UsageError, match="the home of nobody"):
        parse_reference("~nobody-of-that-name/a.gguf", catalog)
    with pytest.raises(NotFoundError, match=r"no file 'other\.gguf'"):
        parse_reference("other.gguf", catalog)


def test_an_unknown_name_gets_the_nearest(catalog: Catalog) -> None:
    with pytest.raises(NotFoundError, match="did you mean mistral"):
        parse_reference("mistrl", catalog)
    with pytest.raises(NotFoundError, match="org/repo"):
        parse_reference("zzzzzz", catalog)
    assert catalog.suggest("mistral:13b")[0] == "mistral:7b"
    assert len(Catalog.load(None).suggest("qwen")) == 3


def test_a_name_of_the_catalog_takes_no_revision(catalog: Catalog) -> None:
    with pytest.raises(UsageError, match="--revision"):
        parse_reference("mistral@main", catalog)


@pytest.mark.parametrize(
    "text",
    [
        "", "  ", "a/b/c", "a/..", "a/b:", "a/b@", "a/b:Q4/0", "a/b@../c", "a/b:..", "a//b", "a/b:Q@x@y",
        "-a/b", "a/b\0", "a\n/b", "a/\u202eb", "hf.co/", "hf.co/a", "hf.co/a/b/c", "http://huggingface.co/a/b",
        "file:///etc/passwd", "https://evil.example/a/b", "https://huggingface.co@evil.example/a/b",
        "https://user@huggingface.co/a/b", "https://huggingface.co:1/a/b", "https://[/a/b", "https://",
        "https://huggingface.co/a/b/resolve/main/../../x.gguf", "https://huggingface.co/a/%2e%2e/b",
        "https://huggingface.co/a/b/resolve/main/%2e%2e%2fx.gguf", "https://hf.co/a/b/resolve/main/x.bin",
        "https://hf.co/a/b/resolve/%ff/x.gguf", "x" * 1001 + "/b",
    ],
)  # fmt: skip
def test_what_names_no_model_is_a_usage_error(catalog: Catalog, text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text, catalog)


@given(st.one_of(st.text(), st.text("a/.:@~\\%\0 -_Q4hfcotps"), st.from_regex(r"(hf\.co/)?\S+/\S+")))
@example("org/repo")
def test_any_text_is_a_reference_or_a_clear_error(text: str) -> None:
    try:
        reference = parse_reference(text, Catalog())
    except (UsageError, NotFoundError):
        return
    if isinstance(reference, HubReference):
        for part in (reference.repo, reference.quant, reference.file, reference.revision):
            assert part is None or (".." not in part and not part.startswith("/") and part.isascii())
        assert reference.repo.count("/") == 1
