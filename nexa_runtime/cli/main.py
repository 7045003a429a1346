"""The commands.

Owns arguments, their help, and how flags become settings. It never computes anything itself; ``entry`` runs
it.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

import nexa_runtime
from nexa_runtime.cli import run as run_command
from nexa_runtime.cli import serve as serve_command
from nexa_runtime.cli import tenants as tenants_command
from nexa_runtime.config import (
    EngineSettings,
    ModelSettings,
    ServerSettings,
    Settings,
    env_names,
    load_settings,
)
from nexa_runtime.telemetry import configure_logging

app = typer.Typer(
    name="nexa-runtime",
    help="A multi-tenant server for local language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _option(slice_: type[ModelSettings | EngineSettings | ServerSettings], field: str, flag: str) -> Any:
    """A flag that overrides a setting; its help is the setting's."""
    setting = slice_.model_fields[field]
    text = f"{setting.description} [env: {env_names(setting)[0]}; default: {setting.default}]"
    return typer.Option(flag, help=text, show_default=False)


ModelFlag = Annotated[str | None, _option(ModelSettings, "model_id", "--model")]
NamesFlag = Annotated[
    list[str] | None,
    typer.Option("--served-name", help="a further name of the model; repeatable [env: NEXA_SERVED_NAMES]"),
]
HostFlag = Annotated[str | None, _option(ServerSettings, "host", "--host")]
PortFlag = Annotated[str | None, _option(ServerSettings, "port", "--port")]
CtxSizeFlag = Annotated[str | None, _option(EngineSettings, "ctx_size", "--ctx-size")]
SlotsFlag = Annotated[str | None, _option(EngineSettings, "slots", "--slots")]
ThreadsFlag = Annotated[str | None, _option(EngineSettings, "threads", "--threads")]
KvFlag = Annotated[str | None, _option(EngineSettings, "kv", "--kv")]
StepTokensFlag = Annotated[str | None, _option(EngineSettings, "step_tokens", "--step-tokens")]
GpuLayersFlag = Annotated[str | None, _option(ModelSettings, "gpu_layers", "--gpu-layers")]


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
    )
    serve_command.serve(settings)


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="`demo` (bundled) or the path of a GGUF file")],
    prompt: Annotated[str | None, typer.Argument(help="what to ask; none: a chat")] = None,
    ctx_size: CtxSizeFlag = None,
    threads: ThreadsFlag = None,
    gpu_layers: GpuLayersFlag = None,
) -> None:
    """Ask a model in the terminal; the answer streams to stdout."""
    settings = _settings(
        NEXA_MODEL_ID=model,
        NEXA_SLOTS=1,
        NEXA_CTX_SIZE=ctx_size,
        NEXA_THREADS=threads,
        NEXA_GPU_LAYERS=gpu_layers,
        quiet=True,
    )
    run_command.run(settings, prompt)


keys_app = typer.Typer(help="Keys of tenants.", no_args_is_help=True)
tenants_app = typer.Typer(help="What tenants may do, and have used.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(tenants_app, name="tenants")

TenantArgument = Annotated[str, typer.Argument(help="the tenant's id")]


@keys_app.command()
def create(tenant: Annotated[str, typer.Option("--tenant", help="whose key it is")]) -> None:
    """Make a key: it is printed once, with its digest and the command that puts it into Vault."""
    tenants_command.create(tenant, _settings(quiet=True))


@tenants_app.command("list")
def list_tenants() -> None:
    """The tenants that a running server knows (NEXA_URL, NEXA_ADMIN_KEY)."""
    tenants_command.list_all(_settings(quiet=True))


@tenants_app.command()
def show(
    tenant: TenantArgument,
    refresh: Annotated[bool, typer.Option("--refresh", help="ask the source of limits anew")] = False,
) -> None:
    """The limits in force for one tenant, as a running server applies them."""
    tenants_command.show(tenant, _settings(quiet=True), refresh=refresh)


@tenants_app.command()
def check(
    tenant: Annotated[str | None, typer.Argument(help="the tenant's id")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="look into this tenants file instead")] = None,
) -> None:
    """Say what is wrong with a tenant's limits; exit code 1 if anything is."""
    tenants_command.check(tenant, _settings(quiet=True), file=file)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(nexa_runtime.__version__)
        raise typer.Exit


def _settings(*, quiet: bool = False, **overrides: object) -> Settings:
    settings = load_settings(overrides)
    configure_logging("ERROR" if quiet and settings.log.level == "INFO" else settings.log.level)
    return settings
