"""What an operator may set, read once from PETSEG_* environment variables by `create_app` and the command line."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.engine_choice import EngineName, PrecisionName, default_cache_folder
from models.folders import BACKBONE_FOLDER_VARIABLE, CHECKPOINT_FOLDER
from models.image_files import MAX_FRAMES
from models.prompts import MAX_POINTS
from service.client_requests import API_KEY_VARIABLE, SERVER_VARIABLE

PREFIX = "PETSEG_"


def split_words(value: object) -> object:
    """A list as operators write it: words with commas between them."""
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_words)]


class SettingsError(ValueError):
    """A setting that is unknown or out of range; names the variable, got and wanted in one line."""


class Settings(BaseSettings):
    """The service's settings; `PETSEG_PORT=9000` sets `port`."""

    # The docstrings of the fields are what docs/settings.md says of them.
    # An empty variable counts as not set: compose files hand on `${X:-}`, and "" would be the working directory.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    checkpoints: Path = CHECKPOINT_FOLDER
    """Folder whose *.safetensors are served, each under its file name."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is all of the machine's."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 is any free one."""
    operation_host: str = "127.0.0.1"
    """Address of the operation port."""
    operation_port: int | None = Field(None, ge=0, le=65535)
    """Another port for /metrics, which then leaves the first, and for the health checks, which are on both."""

    cors_origins: Words = ()
    """Origins whose pages may call the service from a browser, such as https://example.org; * is any, empty is none."""

    log_format: Literal["logfmt", "json"] = "logfmt"
    """How log lines are written: `key=value` words, or a JSON object a line."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """At `debug` the probes' own requests have log lines too."""
    traces: Literal["off", "otlp"] = "off"
    """`otlp` sends OpenTelemetry spans where OTEL_EXPORTER_OTLP_ENDPOINT says; needs the extra `otel`."""

    reload_poll_s: float = Field(0.0, ge=0)
    """How often to look whether checkpoints have changed, and to take them up; 0 only on SIGHUP."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is the GPU where there is one."""
    engine: EngineName = "auto"
    """What runs the networks; `auto` is OpenVINO on a CPU where it is installed, torch otherwise."""
    precision: PrecisionName = "auto"
    """`auto` is bf16 where the device computes in it natively: faster, masks differ in few border pixels."""
    compile: bool = False
    """Hand torch's networks to torch.compile: minutes at start, and a C++ compiler on a CPU. OpenVINO ignores it."""
    engine_cache: Path | None = Field(default_factory=default_cache_folder)
    """Folder that keeps networks converted for OpenVINO, by itself one in the user's cache folder. Where it cannot be
    written to each start is as the first: torch stands in for half a minute, and image ids of that time are lost."""
    streams: int = Field(0, ge=0, le=1024)
    """Batches that may run side by side, of all models; 0 is one per CPU, and on a GPU two: one is made up while the
    other runs."""
    stream_threads: int = Field(0, ge=0)
    """Threads of each on a CPU; 0 divides the CPUs among the streams, and lets one that runs alone have up to four."""
    fronts: int | None = Field(None, ge=0, le=256)
    """Processes that speak HTTP and work on photos before the one that runs the networks, whose interpreter answers
    some hundred requests a second by itself. If not set, all CPUs but two beside a GPU, sixteen at most; without one
    half of them, or of the threads of `streams` where these are set, four at most and none of three or fewer; none
    where `image_processes` is set. Each admits twice its share of the limits on requests, connections and memory."""
    image_threads: int = Field(0, ge=0, le=1024)
    """Threads that decode photos and draw answers; 0 is one per CPU, one for each of `image_processes`, or two in each
    front."""
    image_processes: int | None = Field(None, ge=0, le=1024)
    """Processes that do so in the threads' stead, of each front where there are fronts. If not set, all CPUs but two
    beside a GPU without fronts, else none."""

    gather_threads: bool = True
    """Keep the threads that share Python's interpreter on one CPU while that is enough for them: a tenth to a fifth
    more photos of many callers. Only with OpenVINO, without fronts or image processes, not under Ray Serve."""

    max_batch_size: int = Field(0, ge=0, le=1024)
    """Photos of one forward pass; 0 takes what pays on this device, found for each model at the start."""
    max_wait_s: float = Field(0.0, ge=0, le=10)
    """How long an idle device waits for a batch to fill; 0 never waits."""
    queue_size: int = Field(128, ge=1)
    """Photos one model holds, from decoding to drawing; more are refused with 503; those of a batch wait."""
    max_queue_s: float = Field(15.0, gt=0)
    """Seconds that a photo may wait for its turn with a model; later is 503."""
    deadline_s: float = Field(30.0, gt=0)
    """Seconds from a request's last byte to its answer; later is 504."""
    drain_s: float = Field(20.0, ge=0)
    """Seconds that accepted requests get to finish when the server stops."""
    linger_s: float = Field(0.0, ge=0)
    """Seconds after the signal to stop in which /readyz is false but new work is still taken, for load balancers that
    take a while to look; then new work gets 503, and `drain_s` begins."""
    stall_s: float = Field(60.0, ge=0)
    """A forward pass that runs longer turns /readyz false until it ends; 0 never."""
    stall_fatal_s: float = Field(180.0, ge=0)
    """A forward pass that runs longer turns /healthz false, so that the orchestrator starts a new process; 0 never."""
    exit_when_dead: bool = False
    """End with exit code 1 where /healthz would be false: for docker compose and systemd, which look at exits alone."""

    keys: Path | None = None
    """File of API keys, made by `petseg key new`; every caller then needs one. None lets everyone in."""
    requests_per_minute: int = Field(0, ge=0)
    """Of each key, or without keys of each address; one photo of a batch counts as one. 0 is no limit."""
    trusted_proxies: Words = ()
    """Addresses of proxies whose X-Forwarded-For tells the caller's address."""

    max_connections: int = Field(4096, ge=1)
    """Open connections; one more takes the place of the one that has been idle longest, or is dropped."""
    keep_alive_s: int = Field(75, ge=1)
    """Seconds that a connection may be idle between two requests. Set it above the time for which clients and the
    balancer before them keep one: a request that meets its closing is lost, and few send a POST again."""
    max_header_bytes: int = Field(32 << 10, ge=256)
    """Request line and headers; more is 431."""
    header_timeout_s: float = Field(10.0, gt=0)
    """Seconds from a connection's opening, or a request's first byte, to the end of the headers; then it is closed."""
    write_timeout_s: float = Field(30.0, gt=0)
    """Seconds that a client may read nothing of a waiting answer; then the connection is closed."""
    max_requests: int = Field(1024, ge=1)
    """Requests in flight; more are refused with 503."""
    max_client_requests: int = Field(256, ge=1)
    """Requests in flight of one key, or without keys of one address; more are refused with 429."""
    body_timeout_s: float = Field(20.0, gt=0)
    """Seconds in which a body must come, and one more for each `min_body_bytes_per_s` of it that has; then 408."""
    min_body_bytes_per_s: int = Field(64 << 10, ge=1)
    """Pace that a body must keep, see `body_timeout_s`."""
    max_held_bytes: int = Field(1 << 30, ge=1)
    """Bodies of all requests in flight together; more are refused with 503."""
    max_body_bytes: int = Field(32 << 20, ge=1)
    """Body of one /segment/{model} request."""
    max_batch_body_bytes: int = Field(256 << 20, ge=1)
    """Body of one /segment/{model}/batch request."""
    max_batch_images: int = Field(256, ge=1)
    """Photos of one /segment/{model}/batch request."""
    max_pixels: int = Field(1 << 26, ge=1)
    """Pixels of one photo, judged from its header before decoding."""
    max_points: int = Field(MAX_POINTS, ge=1, le=MAX_POINTS)
    """Clicks of one request."""
    max_text_characters: int = Field(500, ge=1, le=500)
    """Of a text prompt."""
    max_json_depth: int = Field(4, ge=2, le=64)
    """Brackets within brackets of a JSON field, counted before it is parsed; clicks need 2."""
    max_json_values: int = Field(1 << 20, ge=16)
    """Values of a JSON body, which is what Label Studio sends, counted before it is parsed; a list or an object takes
    more memory and counts as sixteen."""
    max_frames: int = Field(MAX_FRAMES, ge=1)
    """Frames of one photo's file; the first is segmented, the others are counted without decoding them."""
    cache_bytes: int = Field(256 << 20, ge=0)
    """Memory for photos that may be clicked again: of each its file, and features of
    about 0.9 MB with the backbone that ships; 0 keeps none."""

    label_studio_url: str = Field("", pattern=r"^(https?://[^\s?#@]+)?$")
    """The Label Studio whose tasks' images may be fetched; empty fetches none, and takes data URIs alone."""
    label_studio_token: SecretStr = SecretStr("")
    """Access token of a user of that Label Studio."""


def read_settings(**overrides: Any) -> Settings:
    """Settings from the environment, `overrides` (where not None) on top. Raises SettingsError."""
    given = {name: value for name, value in overrides.items() if value is not None}
    if unknown := unknown_variables(os.environ):
        known = ", ".join(variable(name) for name in Settings.model_fields)
        raise SettingsError(f"got the unknown setting {unknown[0]}, wanted one of {known}; correct or unset it")
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = variable(str(first["loc"][0])) if first["loc"] else "settings"
        raise SettingsError(f"{name}: got {first['input']!r}; {first['msg']}") from error


def variable(name: str) -> str:
    """Name of the environment variable that sets the field `name`."""
    return PREFIX + name.upper()


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """PETSEG_* variables that set nothing here, in `models` nor in the client, sorted."""
    elsewhere = {BACKBONE_FOLDER_VARIABLE, SERVER_VARIABLE, API_KEY_VARIABLE}
    known = elsewhere | {variable(name) for name in Settings.model_fields}
    return sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)
