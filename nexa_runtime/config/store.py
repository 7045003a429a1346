"""Settings of where models lie, and of the commands that ask a server."""

from pydantic import Field, SecretStr

from nexa_runtime.config.base import Slice, unset


class StoreSettings(Slice):
    """The model store, and the hub that models come from."""

    model_store: str | None = Field(
        None,
        validation_alias="NEXA_MODEL_STORE",
        min_length=1,
        json_schema_extra=unset("in the user's data directory"),
        description="folder of the model store",
    )
    state_dir: str | None = Field(
        None,
        validation_alias="NEXA_STATE_DIR",
        min_length=1,
        json_schema_extra=unset("in the user's state directory"),
        description="folder for what the server writes itself: which files were tried and verified, how many"
        " threads are fastest, usage records that wait",
    )
    catalog_file: str | None = Field(
        None,
        validation_alias="NEXA_CATALOG_FILE",
        min_length=1,
        json_schema_extra=unset("the models.yaml that is shipped"),
        description="catalog of model names",
    )
    endpoint: str = Field(
        "https://huggingface.co",
        validation_alias="HF_ENDPOINT",
        pattern=r"^https?://\S+$",
        examples=["https://huggingface.co"],
        description="the hub that models are pulled from",
    )
    token: SecretStr | None = Field(
        None, validation_alias="HF_TOKEN", description="token for gated or private repositories"
    )
    is_offline: bool = Field(
        False, validation_alias="HF_HUB_OFFLINE", description="whether the hub is never asked"
    )


class ClientSettings(Slice):
    """Which running server the commands ask."""

    url: str = Field(
        "http://127.0.0.1:8080",
        validation_alias="NEXA_URL",
        pattern=r"^https?://\S+$",
        examples=["http://127.0.0.1:8080"],
        description="the running server that nexa-runtime tenants, ps, rm and replay ask",
    )
