# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A stranger's plug-in package, written to a folder as `pip install --target` would leave it there."""

import textwrap
from pathlib import Path


METHOD = """
    from trl_ext import Method

    METHOD = Method(
        name="stranger",
        paper="2401.00001",
        summary="A method from somebody else's package.",
        config="stranger_pkg.training:StrangerConfig",
        trainer="stranger_pkg.training:StrangerTrainer",
        columns=("text",),
        decoding="stranger_pkg.decoding:StrangerDecoding",
    )
"""

# A token is made likelier. `Policy`'s callables are those of the plain model, under a hook on its head.
DECODING = """
    import dataclasses
    import math
    from dataclasses import dataclass, field

    import torch
    from trl_ext.inference.policy import model_policy

    @dataclass
    class StrangerDecoding:
        stranger_token: int = field(default=0, metadata={"help": "Id of the token to pull towards. 0 means none."})
        stranger_pull: list[float] = field(default_factory=lambda: [1.0], metadata={"help": "How hard, in nats."})

        @property
        def active(self):
            return self.stranger_token != 0

        def check(self):
            if any(map(math.isnan, self.stranger_pull)):
                raise ValueError("stranger_pull must be numbers")

        def policies(self, model, tokenizer, *, name, batch_size):
            if self.stranger_token >= model.config.vocab_size:
                raise ValueError(f"stranger_token {self.stranger_token} is no token of {name!r}")
            plain = model_policy(model, tokenizer, name=name, batch_size=batch_size)
            return [self._policy(plain, model, pull) for pull in self.stranger_pull]

        def _policy(self, plain, model, pull):
            bias = torch.zeros(model.config.vocab_size)
            bias[self.stranger_token] = pull

            def pulled(function):
                def call(*args):
                    hook = model.get_output_embeddings().register_forward_hook(lambda module, given, out: out + bias)
                    try:
                        return function(*args)
                    finally:
                        hook.remove()

                return call

            @torch.no_grad()
            def logps(prompts, completions):
                return [[one(prompt, ids) for ids in several] for prompt, several in zip(prompts, completions)]

            def one(prompt, ids):
                logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
                return logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]

            return dataclasses.replace(
                plain,
                name=f"{plain.name} pulled by {pull}",
                generate=pulled(plain.generate),
                stream=pulled(plain.stream),
                logps=pulled(logps),
                extras={"pull": pull},
                series="pulled",
            )
"""

TRAINING = """
    import json
    from dataclasses import dataclass, field
    from pathlib import Path

    from trl import SFTConfig, SFTTrainer

    @dataclass
    class StrangerConfig(SFTConfig):
        pull: float = field(default=1.0, metadata={"help": "How hard to pull.", "choices": [0.5, 1.0, 2.0]})
        knots: int = field(default=3, metadata={"help": "Knots in the rope."})

    class StrangerTrainer(SFTTrainer):
        def compute_loss(self, *args, **kwargs):
            return self.args.pull * super().compute_loss(*args, **kwargs)

        def train(self, resume_from_checkpoint=None):
            result = super().train(resume_from_checkpoint=resume_from_checkpoint)
            fact = {"pull": self.args.pull, "rows": len(self.train_dataset)}
            fact["processes"] = self.accelerator.num_processes
            fact["distributed_type"] = str(self.accelerator.distributed_type.value)
            if self.accelerator.is_main_process:
                Path(self.args.output_dir, "stranger.json").write_text(json.dumps(fact))
            return result
"""


def write_package(
    folder: Path,
    package: str = "stranger-pkg",
    files: dict[str, str] | None = None,
    entry_points: dict[str, str] | None = None,
    version: str = "0.3",
    group: str = "trl_ext.methods",
) -> Path:
    """
    Write an installed package: its modules, and the metadata that names its entry points.

    Args:
        folder (`Path`):
            Where it is installed; to be put on `sys.path`.
        package (`str`, *optional*, defaults to `"stranger-pkg"`):
            Name of the distribution.
        files (`dict[str, str]`, *optional*):
            Source by file name, within the import package of the same name. If not set, a working method.
        entry_points (`dict[str, str]`, *optional*):
            Method name -> reference. If not set, that of the working method.
        version (`str`, *optional*, defaults to `"0.3"`):
            Version of the distribution.
        group (`str`, *optional*, defaults to `"trl_ext.methods"`):
            Group of the entry points.
    """
    module = package.replace("-", "_")
    files = {"__init__.py": METHOD, "training.py": TRAINING, "decoding.py": DECODING} if files is None else files
    entry_points = {"stranger": f"{module}:METHOD"} if entry_points is None else entry_points
    (folder / module).mkdir(parents=True)
    for name, source in files.items():
        (folder / module / name).write_text(textwrap.dedent(source))
    write_metadata(folder, package, entry_points, version, group)
    return folder


def write_metadata(
    folder: Path, package: str, entry_points: dict[str, str], version: str = "0.3", group: str = "trl_ext.methods"
) -> None:
    """Write the metadata of an installed package: its name, its version and what it declares."""
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    lines = [f"{name} = {reference}" for name, reference in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
