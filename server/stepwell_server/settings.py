"""All settings of the server, read once: flags, then environment, then file, then defaults."""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

SOCKET_NAME = "stepwell.sock"
"""Of the Unix socket in the data folder, for workers on the same host."""

Durability = Literal["memory", "everysec", "always"]


def is_of_kubernetes(port: object) -> bool:
    """Return whether this is what Kubernetes sets STEPWELL_PORT to, for a Service `stepwell`."""
    return isinstance(port, str) and port.startswith(("tcp://", "udp://", "sctp://"))


class _Environment(EnvSettingsSource):
    """The variables; a port that Kubernetes told, which nobody meant for the server, is none."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        value, key, is_complex = super().get_field_value(field, field_name)
        if field_name == "port" and is_of_kubernetes(value):
            value = None
        return value, key, is_complex


class Settings(BaseSettings):
    """What `stepwell serve` can be told; each field has a row in `docs/settings.md`.

    A field is the variable `STEPWELL_DATA_DIR`, the key `data_dir` of the file that `--config` or
    `STEPWELL_CONFIG` names, and, if one may want to change it at each start, the flag `--data-dir`.
    """

    model_config = SettingsConfigDict(env_prefix="STEPWELL_", extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8700
    uds: Path | None = None
    shared_memory: bool = True
    memory_socket: Path | None = None
    data_dir: Path = Path("stepwell-data")
    durability: Durability = "everysec"
    journal_max_bytes: Annotated[int, Field(ge=1 << 20)] | None = None
    checkpoint_every_versions: Annotated[int, Field(gt=0)] | None = None
    checkpoint_every_s: Annotated[float, Field(gt=0)] | None = 900.0
    keep_checkpoints: Annotated[int, Field(gt=0)] = 3
    checkpoint_store: str | None = None
    take_over_store: bool = False
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    max_body_bytes: Annotated[int, Field(gt=0)] = 64 << 30
    max_json_bytes: Annotated[int, Field(gt=0)] = 4 << 20
    staging_bytes: Annotated[int, Field(gt=0)] | None = None
    push_wait_s: Annotated[float, Field(ge=0)] = 20.0
    keep_alive_s: Annotated[int, Field(gt=0)] = 75
    shutdown_grace_s: Annotated[int, Field(ge=0)] = 20
    traces_endpoint: Annotated[str, Field(pattern="^https?://")] | None = None
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_empty(cls, value: object, info: ValidationInfo) -> object:
        """Refuse an empty variable: as a path it would be the current folder."""
        if value == "" and info.field_name != "allowed_hosts":
            raise ValueError("is empty; a setting that is left out has its default")
        return value

    @field_validator("traces_endpoint")
    @classmethod
    def _has_no_user(cls, value: str | None) -> str | None:
        """Refuse a password: the URL is shown in logs."""
        if value is not None and "@" in value:
            raise ValueError(
                "Credentials for a collector are told by OTEL_EXPORTER_OTLP_HEADERS, and are no "
                "part of its URL, which is shown in logs"
            )
        return value

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Take the environment's `a,b` too."""
        if isinstance(value, str):
            return tuple(host.strip() for host in value.split(",") if host.strip())
        return value

    @model_validator(mode="after")
    def _has_certificate(self) -> Self:
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("`tls_key` needs `tls_cert`; without it the server would not use TLS")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.uds is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def memory_path(self) -> Path | None:
        """Where workers on this host find the Unix socket for shared memory; None if nowhere."""
        if not self.shared_memory:
            return None
        return (self.uds or self.memory_socket or self.data_dir / SOCKET_NAME).absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the file behind flags and environment."""
        file = TomlConfigSettingsSource(settings_cls)
        return init_settings, _Environment(settings_cls), file

    @classmethod
    def load(cls, config: Path | None = None, **flags: Any) -> Settings:
        """Return the settings; flags that are None were not given.

        Raises:
            pydantic.ValidationError: A value is not allowed, or the file has an unknown key.
            OSError: There is no such file, or it cannot be read.
        ValueError: It is no TOML.
        """
        if config is not None and not config.is_file():
            raise FileNotFoundError(f"There is no settings file {config}")
        given = {name: value for name, value in flags.items() if value is not None}

        class WithFile(cls):  # type: ignore[valid-type, misc]
            model_config = SettingsConfigDict(toml_file=config)

        try:
            settings: Settings = WithFile(**given)
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"The settings file {config} is no TOML: {error}") from None
        except OSError as error:
            raise OSError(f"The settings file {config} cannot be read ({error.strerror})") from None
        return settings
