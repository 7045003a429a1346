"""The commands.

Owns arguments, their help, and how flags become settings. It never computes anything itself; ``entry`` runs
it. What a command needs is imported when it runs: llama.cpp, clients and the store cost a second together.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

import nexa_runtime
from nexa_runtime.cli.output import Output
from nexa_runtime.config import (
    EngineSettings,
    ModelSettings,
    ServerSettings,
    Settings,
    env_names,
    load_settings,
    shown_default,
)
from nexa_runtime.store.reference import check_text
from nexa_runtime.telemetry import configure_logging

app = typer.Typer(
    name="nexa-runtime",
    help="A multi-tenant server for local language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _option(slice_: type[ModelSettings | EngineSettings | ServerSettings], field: str, flag: str) -> Any:
    """A flag that overrides a setting; its help is the setting's."""
    setting = slice_.model_fields[field]
    text = f"{setting.description} [env: {env_names(setting)[0]}; default: {shown_default(setting)}]"
    return typer.Option(flag, help=text, show_default=False)


ModelFlag = Annotated[str | None, _option(ModelSettings, "model_id", "--model")]
NamesFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--served-name", help="a further name of the default model; repeatable [env: NEXA_SERVED_NAMES]"
    ),
]
HostFlag = Annotated[str | None, _option(ServerSettings, "host", "--host")]
PortFlag = Annotated[str | None, _option(ServerSettings, "port", "--port")]
TlsCertFlag = Annotated[str | None, _option(ServerSettings, "tls_cert", "--tls-cert")]
TlsKeyFlag = Annotated[str | None, _option(ServerSettings, "tls_key", "--tls-key")]
CtxSizeFlag = Annotated[str | None, _option(EngineSettings, "ctx_size", "--ctx-size")]
SlotsFlag = Annotated[str | None, _option(EngineSettings, "slots", "--slots")]
ThreadsFlag = Annotated[str | None, _option(EngineSettings, "threads", "--threads")]
KvFlag = Annotated[str | None, _option(EngineSettings, "kv", "--kv")]
StepTokensFlag = Annotated[str | None, _option(EngineSettings, "step_tokens", "--step-tokens")]
GpuLayersFlag = Annotated[str | None, _option(ModelSettings, "gpu_layers", "--gpu-layers")]
JsonFlag = Annotated[bool, typer.Option("--json", help="one JSON document on stdout, errors included")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="names alone on stdout, and no talk")]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="say what would be done, and do nothing")]
StoredArgument = Annotated[str, typer.Argument(metavar="MODEL", help="a name or alias in the store")]


@app.command()
def serve(
    model: ModelFlag = None,
    served_name: NamesFlag = None,
    host: HostFlag = None,
    port: PortFlag = None,
    ctx_size: CtxSizeFlag = None,
    slots: SlotsFlag = None,
    threads: ThreadsFlag = None,
    step_tokens: StepTokensFlag = None,
    kv: KvFlag = None,
    gpu_layers: GpuLayersFlag = None,
    tls_cert: TlsCertFlag = None,
    tls_key: TlsKeyFlag = None,
) -> None:
    """Serve a model over HTTP, as OpenAI does; without arguments the bundled demo model."""
    settings = _settings(
        NEXA_MODEL_ID=model,
        NEXA_SERVED_NAMES=tuple(served_name) if served_name else None,
        NEXA_HOST=host,
        NEXA_PORT=port,
        NEXA_CTX_SIZE=ctx_size,
        NEXA_SLOTS=slots,
        NEXA_THREADS=threads,
        NEXA_STEP_TOKENS=step_tokens,
        NEXA_KV=kv,
        NEXA_GPU_LAYERS=gpu_layers,
        NEXA_TLS_CERT=tls_cert,
        NEXA_TLS_KEY=tls_key,
    )
    from nexa_runtime.cli import serve as command

    command.serve(settings)


@app.command()
def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="a name in the store, `demo` (bundled), or a GGUF file")
    ],
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="what to ask; none: a chat")] = None,
    ctx_size: CtxSizeFlag = None,
    threads: ThreadsFlag = None,
    gpu_layers: GpuLayersFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask a model in the terminal; the answer streams to stdout."""
    settings = _settings(
        NEXA_MODEL_ID=check_text(model),
        NEXA_SLOTS=1,
        NEXA_CTX_SIZE=ctx_size,
        NEXA_THREADS=threads,
        NEXA_GPU_LAYERS=gpu_layers,
        quiet=True,
    )
    from nexa_runtime.cli import run as command

    command.run(settings, Output(as_json), prompt)


@app.command()
def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="a name in the store, `demo` (bundled), or a GGUF file; none: the one that is served",
        ),
    ] = None,
    ctx_size: CtxSizeFlag = None,
    slots: SlotsFlag = None,
    threads: ThreadsFlag = None,
    gpu_layers: GpuLayersFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure how fast this machine is with a model, in about half a minute."""
    settings = _settings(
        NEXA_MODEL_ID=None if model is None else check_text(model),
        NEXA_SLOTS=slots,
        NEXA_CTX_SIZE=ctx_size,
        NEXA_THREADS=threads,
        NEXA_GPU_LAYERS=gpu_layers,
        quiet=True,
    )
    from nexa_runtime.cli import bench as command

    command.bench(settings, Output(as_json))


@app.command()
def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="a name of the catalog, `org/repo[:QUANT][@revision]`, or its address on the hub",
        ),
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", help="branch, tag or commit of the repository")
    ] = None,
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Bring a model from the hub into the store; what was interrupted goes on where it ended."""
    from nexa_runtime.cli import models as command

    settings = _store_settings()
    command.pull(settings, Output(as_json, quiet), model, revision=revision, is_dry_run=dry_run)


@app.command("list")
def list_models(
    catalog: Annotated[bool, typer.Option("--catalog", help="the names that can be pulled")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """The models in the store, or with --catalog those that have a name."""
    from nexa_runtime.cli import models as command

    settings, output = _store_settings(), Output(as_json, quiet)
    command.list_catalog(settings, output) if catalog else command.list_stored(settings, output)


@app.command("show")
def show_model(
    model: StoredArgument,
    ctx_size: CtxSizeFlag = None,
    slots: SlotsFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """What a model is, and the memory it takes for a context and a number of slots."""
    from nexa_runtime.cli import models as command

    settings = _store_settings(NEXA_CTX_SIZE=ctx_size, NEXA_SLOTS=slots)
    command.show(settings, Output(as_json), model)


@app.command()
def rm(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="names or aliases in the store")],
    force: Annotated[bool, typer.Option("--force", help="also where a running server uses it")] = False,
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Remove models from the store; files that others share stay."""
    from nexa_runtime.cli import models as command

    settings, output = _store_settings(), Output(as_json, quiet)
    command.remove(settings, output, models, is_forced=force, is_dry_run=dry_run)


@app.command()
def verify(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="names or aliases; none: all")
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Read models again, every byte, and compare with the hashes on record; exit code 6 if one differs."""
    from nexa_runtime.cli import models as command

    command.verify(_store_settings(), Output(as_json, quiet), models or [])


@app.command()
def gc(dry_run: DryRunFlag = False, as_json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """Remove what no model needs: files without a record, and transfers that were given up."""
    from nexa_runtime.cli import models as command

    command.collect_garbage(_store_settings(), Output(as_json, quiet), is_dry_run=dry_run)


@app.command("import")
def import_model(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", readable=False, help="a GGUF file; of a split model the first part"),
    ],
    name: Annotated[str | None, typer.Option("--name", help="what it is called in the store")] = None,
    force: Annotated[bool, typer.Option("--force", help="also in the place of another model")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Copy a GGUF file into the store."""
    from nexa_runtime.cli import models as command

    settings, output = _store_settings(), Output(as_json, quiet)
    command.import_path(settings, output, path, name=name, is_forced=force)


@app.command()
def ps(as_json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """The models that a running server holds (NEXA_URL, NEXA_ADMIN_KEY)."""
    from nexa_runtime.cli import models as command

    command.list_held(_store_settings(), Output(as_json, quiet))


@app.command()
def probe(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            readable=False,  # the sentence is ours
            help="a GGUF file; of a split model the first part, or all in order",
        ),
    ],
    as_json: JsonFlag = False,
) -> None:
    """Try a model in a process of its own, as the server does before it loads one for the first time."""
    from nexa_runtime.cli import run as command

    command.probe(_settings(quiet=True), Output(as_json), files)


@app.command()
def replay(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", readable=False, help="a request log (NEXA_REQUEST_LOG)")
    ],
    speed: Annotated[
        float, typer.Option("--speed", help="how much faster than it was; 0: as fast as possible")
    ] = 1.0,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="only so many, from the first on")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="ask this one in the place of all")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Send the requests of a log again, to NEXA_URL, and compare: statuses, tokens, times."""
    from nexa_runtime.cli import replay as command

    command.replay(_settings(quiet=True), Output(as_json), file, speed=speed, limit=limit, model=model)


keys_app = typer.Typer(help="Keys of tenants.", no_args_is_help=True)
tenants_app = typer.Typer(help="What tenants may do, and have used.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(tenants_app, name="tenants")

TenantArgument = Annotated[str, typer.Argument(help="the tenant's id")]


@keys_app.command()
def create(tenant: Annotated[str, typer.Option("--tenant", help="whose key it is")]) -> None:
    """Make a key: it is printed once, with its digest and the command that puts it into Vault."""
    from nexa_runtime.cli import tenants as command

    command.create(tenant, _settings(quiet=True))


@tenants_app.command("list")
def list_tenants() -> None:
    """The tenants that a running server knows (NEXA_URL, NEXA_ADMIN_KEY)."""
    from nexa_runtime.cli import tenants as command

    command.list_all(_settings(quiet=True))


@tenants_app.command()
def show(
    tenant: TenantArgument,
    refresh: Annotated[bool, typer.Option("--refresh", help="ask the source of limits anew")] = False,
) -> None:
    """The limits in force for one tenant, as a running server applies them."""
    from nexa_runtime.cli import tenants as command

    command.show(tenant, _settings(quiet=True), refresh=refresh)


@tenants_app.command()
def check(
    tenant: Annotated[str | None, typer.Argument(help="the tenant's id")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="look into this tenants file instead")] = None,
) -> None:
    """Say what is wrong with a tenant's limits; exit code 1 if anything is."""
    from nexa_runtime.cli import tenants as command

    command.check(tenant, _settings(quiet=True), file=file)


usage_app = typer.Typer(help="The table of usage in PostgreSQL or Supabase.", no_args_is_help=True)
app.add_typer(usage_app, name="usage")


@usage_app.command("init")
def init_usage(
    is_printed: Annotated[bool, typer.Option("--print", help="print the SQL, and do nothing")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make the table, or add to an older one what it lacks (NEXA_USAGE_DSN)."""
    from nexa_runtime.cli import usage as command

    command.init(_settings(quiet=True), Output(as_json), is_printed=is_printed)


@usage_app.command("summary")
def summarize_usage(
    tenant: Annotated[str | None, typer.Option("--tenant", help="of this tenant alone")] = None,
    since: Annotated[
        str, typer.Option("--since", help="a time in ISO 8601, or how long ago, like 90m, 24h or 7d")
    ] = "24h",
    as_json: JsonFlag = False,
) -> None:
    """Requests, errors, tokens and times by tenant and model, from the table (NEXA_USAGE_DSN)."""
    from nexa_runtime.cli import usage as command

    command.summarize(_settings(quiet=True), Output(as_json), tenant_id=tenant, since=since)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version and end")] = False,
) -> None:
    if version:
        typer.echo(nexa_runtime.__version__)
        raise typer.Exit


def _store_settings(**overrides: object) -> Settings:
    """For commands that are done in a moment: a damaged record is worth a line, that all is well is not."""
    settings = load_settings(overrides)
    level = "WARNING" if settings.log.level == "INFO" else settings.log.level
    configure_logging(level, secrets=settings.secrets())
    return settings


def _settings(*, quiet: bool = False, **overrides: object) -> Settings:
    settings = load_settings(overrides)
    level = "ERROR" if quiet and settings.log.level == "INFO" else settings.log.level
    configure_logging(level, secrets=settings.secrets())
    return settings
