# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of vLLM wherever something samples, under the names of TRL's GRPO."""

from dataclasses import dataclass, field, fields
from urllib.parse import urlparse


@dataclass
class VLLMSettings:
    """
    Whether and how vLLM draws completions. It has been run on a CPU; training there needs a patch that keeps vLLM from
    packing its weights (`tests/generation/test_vllm.py` has it). Weights were sent to a server with a stand-in only.

    Parameters:
        use_vllm (`bool`, *optional*, defaults to `False`):
            Whether to draw completions with vLLM, by TRL's integration. Not for 4-bit models.
        vllm_mode (`str`, *optional*, defaults to `"colocate"`): `"colocate"` or `"server"`.
        vllm_model_impl (`str`, *optional*, defaults to `"vllm"`): `"vllm"` or `"transformers"`.
        vllm_enable_sleep_mode (`bool`, *optional*, defaults to `False`): Free the engine's memory while training.
        vllm_gpu_memory_utilization (`float`, *optional*, defaults to `0.3`): Share of the GPU for the engine.
        vllm_max_model_length (`int`, *optional*, defaults to `0`): Context of the engine. `0`: the model's.
        vllm_tensor_parallel_size (`int`, *optional*, defaults to `1`): GPUs that share a model.
        vllm_server_base_url (`str`, *optional*, defaults to `""`): Address of the server, in place of host and port.
        vllm_server_host (`str`, *optional*, defaults to `"0.0.0.0"`): Host of the server.
        vllm_server_port (`int`, *optional*, defaults to `8000`): Port of the server.
        vllm_server_timeout (`float`, *optional*, defaults to `240.0`): Seconds to wait for the server.
        vllm_group_port (`int`, *optional*, defaults to `51216`): Port for sending weights to the server.
    """

    use_vllm: bool = field(default=False, metadata={"help": "Whether to draw completions with vLLM."})
    vllm_mode: str = field(
        default="colocate", metadata={"help": "'colocate' or 'server'.", "choices": ["colocate", "server"]}
    )
    vllm_model_impl: str = field(
        default="vllm", metadata={"help": "'vllm' or 'transformers'.", "choices": ["vllm", "transformers"]}
    )
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "Whether to free the memory of the engine while training."}
    )
    vllm_gpu_memory_utilization: float = field(default=0.3, metadata={"help": "Share of the GPU for the engine."})
    vllm_max_model_length: int = field(default=0, metadata={"help": "Context of the engine. 0: the model's."})
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that share a model."})
    vllm_server_base_url: str = field(default="", metadata={"help": "Address of the vLLM server."})
    vllm_server_host: str = field(default="0.0.0.0", metadata={"help": "Host of the vLLM server."})
    vllm_server_port: int = field(default=8000, metadata={"help": "Port of the vLLM server."})
    vllm_server_timeout: float = field(default=240.0, metadata={"help": "Seconds to wait for the vLLM server."})
    vllm_group_port: int = field(default=51216, metadata={"help": "Port for sending weights to the vLLM server."})

    @property
    def vllm_address(self) -> str:
        """Where a server is."""
        return self.vllm_server_base_url or f"http://{self.vllm_server_host}:{self.vllm_server_port}"

    def check_vllm(self) -> None:
        """Raise `ValueError` if a choice is none, or a number out of its range."""
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
            ("vllm_server_host", not set(self.vllm_server_host) & set("/ "), "a name or a number, no address"),
        ):
            if not is_right:
                raise ValueError(f"`{name}` must be {need}, got {getattr(self, name)}.")
        url = urlparse(self.vllm_server_base_url)
        if self.vllm_server_base_url and not (url.scheme in ("http", "https") and url.hostname):
            raise ValueError(
                f"`vllm_server_base_url` must be an address like http://localhost:8000, got {url.geturl()!r}."
            )

    def check_used(self) -> None:
        """Raise `ValueError` if something is set that has no effect."""
        for each in fields(VLLMSettings):
            if not self.use_vllm and getattr(self, each.name) not in (each.default, None):
                raise ValueError(f"`{each.name}` has no effect without `use_vllm`.")

    def vllm_context(self, positions: int) -> int:
        """
        Longest text, prompt and completion, of a model that has so many positions.

        Args:
            positions (`int`): Of the model; `0` for no limit.
        """
        limits = [positions, self.vllm_max_model_length if self.use_vllm and self.vllm_mode == "colocate" else 0]
        return min(filter(None, limits), default=0)


# Where vLLM is and what it may take of a machine, with the defaults: what it draws does not depend on these.
SERVER_FIELDS = {
    each.name: each.default
    for each in fields(VLLMSettings)
    if each.name.startswith(("vllm_server_", "vllm_group_", "vllm_gpu_", "vllm_tensor_"))
}
