# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of vLLM, for training and `trl-ext sample`, under the names of TRL's GRPO."""

from dataclasses import dataclass, field, fields, replace
from urllib.parse import urlparse

from trl_ext.generation_settings import GenerationSettings


# vLLM's names of sampling parameters that are settings of ours.
_OWN_SETTINGS = {"n": "num_generations", "max_tokens": "max_completion_length"}
_OWN_SETTINGS |= {name: name for name in ("repetition_penalty", "temperature", "top_p", "top_k", "min_p")}


@dataclass
class VLLMSettings:
    """
    Whether and how vLLM generates completions. It has been run on a CPU, where training needs a patch that keeps vLLM
    from packing its weights (see `tests/generation/test_vllm.py`). Sending weights to a server has been tested with a
    mock only.

    Parameters:
        use_vllm (`bool`, *optional*, defaults to `False`):
            Whether to generate completions with vLLM. Not for 4-bit models.
        vllm_mode (`str`, *optional*, defaults to `"colocate"`): `"colocate"` (in this process) or `"server"`.
        vllm_model_impl (`str`, *optional*, defaults to `"vllm"`): `"vllm"` or `"transformers"`.
        vllm_enable_sleep_mode (`bool`, *optional*, defaults to `False`): Free the engine's memory while training.
        vllm_gpu_memory_utilization (`float`, *optional*, defaults to `0.3`): Share of the GPU for the engine.
        vllm_max_model_length (`int`, *optional*, defaults to `0`): Context length of the engine. `0`: the model's.
        vllm_tensor_parallel_size (`int`, *optional*, defaults to `1`): GPUs over which a model is split.
        vllm_server_base_url (`str`, *optional*, defaults to `""`): Address of the server, in place of host and port.
        vllm_server_host (`str`, *optional*, defaults to `"0.0.0.0"`): Host of the server.
        vllm_server_port (`int`, *optional*, defaults to `8000`): Port of the server.
        vllm_server_timeout (`float`, *optional*, defaults to `240.0`): Seconds to wait until the server has started.
        vllm_group_port (`int`, *optional*, defaults to `51216`): Port for sending weights to the server.
    """

    use_vllm: bool = field(default=False, metadata={"help": "Whether to generate completions with vLLM."})
    vllm_mode: str = field(
        default="colocate",
        metadata={"help": "'colocate' (in this process) or 'server'.", "choices": ["colocate", "server"]},
    )
    vllm_model_impl: str = field(
        default="vllm", metadata={"help": "'vllm' or 'transformers'.", "choices": ["vllm", "transformers"]}
    )
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "Whether to free the memory of the engine while training."}
    )
    vllm_gpu_memory_utilization: float = field(default=0.3, metadata={"help": "Share of the GPU for the engine."})
    vllm_max_model_length: int = field(default=0, metadata={"help": "Context length of the engine. 0: the model's."})
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs over which a model is split."})
    vllm_server_base_url: str = field(default="", metadata={"help": "Address of the vLLM server."})
    vllm_server_host: str = field(default="0.0.0.0", metadata={"help": "Host of the vLLM server."})
    vllm_server_port: int = field(default=8000, metadata={"help": "Port of the vLLM server."})
    vllm_server_timeout: float = field(
        default=240.0, metadata={"help": "Seconds to wait until the server has started."}
    )
    vllm_group_port: int = field(default=51216, metadata={"help": "Port for sending weights to the vLLM server."})

    @property
    def vllm_address(self) -> str:
        """Address of the server."""
        return self.vllm_server_base_url or f"http://{self.vllm_server_host}:{self.vllm_server_port}"

    def check_vllm(self) -> None:
        """Raise `ValueError` if a setting is out of range."""
        for name in ("vllm_mode", "vllm_model_impl"):
            choices = VLLMSettings.__dataclass_fields__[name].metadata["choices"]
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        for name, is_right, need in (
            ("vllm_tensor_parallel_size", self.vllm_tensor_parallel_size >= 1, "at least 1"),
            ("vllm_max_model_length", self.vllm_max_model_length >= 0, "at least 0 (the model's)"),
            ("vllm_gpu_memory_utilization", 0 < self.vllm_gpu_memory_utilization <= 1, "above 0 and at most 1"),
            ("vllm_server_timeout", self.vllm_server_timeout >= 0, "at least 0"),
            ("vllm_server_port", 0 < self.vllm_server_port < 65536, "between 1 and 65535"),
            ("vllm_group_port", 0 < self.vllm_group_port < 65536, "between 1 and 65535"),
            (
                "vllm_server_host",
                not set(self.vllm_server_host) & set("/ "),
                "a host name or an IP address, without http://",
            ),
        ):
            if not is_right:
                raise ValueError(f"`{name}` must be {need}, got {getattr(self, name)}.")
        url = urlparse(self.vllm_server_base_url)
        if self.vllm_server_base_url and not (url.scheme in ("http", "https") and url.hostname):
            raise ValueError(
                f"`vllm_server_base_url` must be an address like http://localhost:8000, got {url.geturl()!r}."
            )

    def check_sampling(self, settings: GenerationSettings) -> None:
        """Raise `ValueError` if vLLM cannot sample as asked."""
        if settings.num_beams > 1:
            raise ValueError("`use_vllm` has no beam search: leave `num_beams` out.")
        if settings.cuda_graphs == "always":
            raise ValueError(
                "`cuda_graphs` is for generation with transformers, which `use_vllm` replaces: leave it out."
            )
        given = settings.generation_kwargs or {}
        if settings.searches_each:
            raise ValueError("`use_vllm` has no beam search: leave `num_beams` out of `generation_kwargs`.")
        if settings.cache_implementation:
            raise ValueError(
                "`cache_implementation` is for generation with transformers, which `use_vllm` replaces: leave it out."
            )
        if "seed" in given and self.vllm_mode == "colocate":
            raise ValueError(
                "`generation_kwargs` must not have 'seed' with colocated vLLM, which would generate the same "
                "completion of a prompt every time: set `seed`, which already determines the completions."
            )
        for name in given:
            if name in _OWN_SETTINGS:
                raise ValueError(
                    f"`generation_kwargs` must not have {name!r} with `use_vllm`: set `{_OWN_SETTINGS[name]}`."
                )

    def check_used(self) -> None:
        """Raise `ValueError` if a setting has no effect, because `use_vllm` is not set."""
        for each in fields(VLLMSettings):
            if not self.use_vllm and getattr(self, each.name) not in (each.default, None):
                raise ValueError(f"`{each.name}` has no effect without `use_vllm`.")

    def vllm_context(self, positions: int) -> int:
        """
        Maximum length of a prompt with its completion.

        Args:
            positions (`int`): Context length of the model; `0` for no limit.
        """
        limits = [positions, self.vllm_max_model_length if self.use_vllm and self.vllm_mode == "colocate" else 0]
        return min(filter(None, limits), default=0)


def stopping_at(settings: GenerationSettings, token_id: int | None) -> GenerationSettings:
    """The settings with a token that ends completions, which vLLM does not know from the files of the model."""
    stop = {} if token_id is None else {"stop_token_ids": [token_id]}
    return replace(settings, generation_kwargs=stop | (settings.generation_kwargs or {}))


# Settings of the address and the resources of vLLM, with their defaults: its completions do not depend on these.
SERVER_FIELDS = {
    each.name: each.default
    for each in fields(VLLMSettings)
    if each.name.startswith(("vllm_server_", "vllm_group_", "vllm_gpu_", "vllm_tensor_"))
}
