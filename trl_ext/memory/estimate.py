# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What a training occupies on one device, by a formula from the sizes of its models.

The formula adds what autograd keeps of each operation of a layer, and what is alive beside it where a step needs most.
The tests compare it with the count of `shape_only` and `tally`.

Letters: D hidden size, V vocabulary, L layers, N sequences, T positions.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from trl_ext.decoding.static_tree import static_columns
from trl_ext.logprobs import lm_head
from trl_ext.logprobs.shared_prefix import Layout, choose_form

from .inventory import Inventory
from .needs import Needs, needs_of_config


GIB = 2**30

# TRL's fused head on a GPU: positions and tokens of a tile of logits.
_TILE = (4096, 32768)
# Bytes of a logit in our head on a CPU: in half precision, in float32, and what is computed from it.
_CHUNKED_LOGIT = 14
# Bytes of a position that is kept between the two passes of parts: log-probability, its derivative, entropy, whether
# the token was the most likely one, and the number of its completion.
_BETWEEN_PASSES = 24
# Bytes of a logit while a token is sampled: in half precision, in float32, scaled, filtered, and its probability.
_SAMPLED_LOGIT = 18

# Bytes of the optimizer's states for an element, by the beginning of `optim`. 8-bit states of bitsandbytes have a
# scale for each 256. Paged ones move to CPU memory when the device is full.
_STATES = (
    ("paged_", 0.0),
    *((f"{name}_8bit", 2 + 8 / 256) for name in ("adamw_bnb", "adamw", "ademamix")),
    ("lion_8bit", 1 + 4 / 256),
    ("rmsprop_bnb_8bit", 1 + 4 / 256),
    ("sgd", 0.0),
    ("adafactor", 0.02),
    ("adagrad", 1.0),
    ("lion", 1.0),
    ("rmsprop", 1.0),
)


@dataclass(frozen=True)
class Sizes:
    """
    The settings that decide about memory.

    Args:
        prompts (`int`): Prompts of a step on the device (`per_device_train_batch_size`).
        prompt, completion (`int`): Longest prompt and completion, in tokens.
        autocast (`bool`): Whether a step computes in half precision whatever the dtype of the weights (`bf16`).
        checkpointing (`bool`): Whether activations are computed again in the backward pass.
        offloading (`bool`): Whether activations are in CPU memory meanwhile.
        shared_prefix (`str`): See [`~trl_ext.logprobs.shared_prefix.SharedPrefixRows`].
        per_forward (`int`): Most completions in a forward pass (`completions_per_forward`); 0 for all.
        accumulation (`int`): Steps whose gradients are added.
        optimizer (`str`): `optim` of the config.
        rows (`int`): Sequences that are generated at once.
        round (`int`): Prompts of a round, whose completions are generated before training on them; 0 for all.
        graphs (`bool`): Whether generation has a static KV cache, for CUDA graphs.
        cast (`bool`): Whether generation uses a copy of the model in bfloat16.
        gpu (`bool`): Whether the device is a GPU, with its form of shared rows and TRL's fused head.
    """

    prompts: int = 8
    prompt: int = 256
    completion: int = 256
    autocast: bool = True
    checkpointing: bool = True
    offloading: bool = False
    shared_prefix: str = "auto"
    per_forward: int = 0
    accumulation: int = 1
    optimizer: str = "adamw_torch_fused"
    rows: int = 128
    round: int = 0
    graphs: bool = True
    cast: bool = False
    gpu: bool = True

    @classmethod
    def of(cls, args: Any, prompt: int = 0, completion: int = 0) -> "Sizes":
        """
        The sizes with the settings of a config.

        Args:
            args ([`~trl_ext.training.config.ExtConfig`]): The config, or an object with the same attributes.
            prompt, completion (`int`, *optional*, defaults to `0`): Longest prompt and completion in tokens. `0`:
                completions of `max_completion_length`, and prompts that leave room for them in `max_length`.
        """
        longest = int(args.max_length or 0)
        completion = completion or min(int(args.max_completion_length), longest // 2 or 1 << 30)
        prompt = prompt or (longest - completion if longest else 512)
        on_cpu = bool(getattr(args, "use_cpu", False))
        steps = int(getattr(args, "resample_steps", 0) or 0)
        prompts, accumulation = int(args.per_device_train_batch_size), int(args.gradient_accumulation_steps)
        return cls(
            prompts=prompts,
            prompt=prompt,
            completion=completion,
            autocast=bool(args.bf16 or args.fp16),
            checkpointing=bool(args.gradient_checkpointing),
            offloading=bool(args.activation_offloading),
            shared_prefix=getattr(args, "shared_prefix", "never"),
            per_forward=int(getattr(args, "completions_per_forward", 0) or 0),
            accumulation=accumulation,
            optimizer=str(getattr(args.optim, "value", args.optim)),
            rows=int(args.generation_batch_size or (64 if on_cpu else 128)),
            round=prompts * accumulation * steps,
            graphs=args.cuda_graphs == "always" or (args.cuda_graphs == "auto" and not on_cpu),
            gpu=not on_cpu,
            cast=bool(args.cast_for_generation),
        )


@dataclass(frozen=True)
class MemoryEstimate:
    """
    What a training occupies, counted and not measured.

    Args:
        phases (`dict[str, dict[str, float]]`): For each phase of training the bytes of its parts.
    """

    phases: dict[str, dict[str, float]]

    @property
    def phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> dict[str, float]:
        """GiB of each part in this phase."""
        return {name: size / GIB for name, size in self.phases[self.phase].items() if size}

    @property
    def total_gib(self) -> float:
        """GiB of all parts in this phase."""
        return sum(self.parts.values())

    @property
    def margin_gib(self) -> float:
        """
        GiB beside the tensors: a CUDA context with its kernels, and what the allocator cannot use.

        1.3 GB is what transformers' guide "Model training anatomy" measures before a model is loaded. 5% is for pieces
        that the allocator cannot use and for the error of the formula; it is our choice.
        """
        return 1.3e9 / GIB + 0.05 * self.total_gib

    @property
    def needed_gib(self) -> float:
        """GiB that a card must have."""
        return self.total_gib + self.margin_gib


def estimate_memory(
    model: Any,
    args: Any,
    *,
    beside: Iterable[Any] = (),
    generates: bool = True,
    prompt: int = 0,
    completion: int = 0,
    completions: int = 0,
) -> MemoryEstimate:
    """
    What a training will occupy on one device. Takes milliseconds.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model. Of a method that freezes
            it and trains another one, that one is the first of `beside`.
        args ([`~trl_ext.training.config.ExtConfig`]): The trainer's config.
        beside (`Iterable`, *optional*): Further models in memory, such as a reward model. The first one may be the
            model that is trained.
        generates (`bool`, *optional*, defaults to `True`): Whether training generates completions.
        prompt, completion (`int`, *optional*, defaults to `0`): Longest ones, in tokens; by default as in [`Sizes`].
        completions (`int`, *optional*, defaults to `0`):
            Most completions of a prompt in a training step; by default as many as the config generates.

    Returns:
        [`MemoryEstimate`]
    """
    needs = needs_of_config(args)
    needs = replace(needs, generates=needs.generates and generates, trained=completions or needs.trained)
    others = list(beside)
    second = others.pop(0) if needs.second and others else None
    held = sum(p.numel() * p.element_size() for other in others for p in other.parameters())
    return estimate(
        Inventory.of(model),
        needs,
        Sizes.of(args, prompt, completion),
        second=None if second is None else Inventory.of(second),
        others={"other models": float(held)},
    )


def estimate(
    language_model: Inventory,
    needs: Needs,
    sizes: Sizes,
    *,
    second: Inventory | None = None,
    others: dict[str, float] | None = None,
) -> MemoryEstimate:
    """
    What a training occupies.

    Args:
        language_model ([`Inventory`]): The language model.
        needs ([`~trl_ext.memory.needs.Needs`]): What the method needs.
        sizes ([`Sizes`]): The settings.
        second ([`Inventory`], *optional*): The model that is trained instead of the language model.
        others (`dict[str, float]`, *optional*): Bytes of further models in memory, by what they are.
    """
    trained = second or language_model
    own = needs.own(language_model.hidden, language_model.vocabulary) if needs.own else 0
    static = _static(language_model, trained, needs, sizes, own) | (others or {})
    phases = {f"training: {name}": static | parts for name, parts in _training(trained, needs, sizes, own).items()}
    if needs.generates:
        phases["generation"] = static | _generation(language_model, needs, sizes)
    return MemoryEstimate(phases)


# ------------------------------------------------------------------------------------------- what is always there


def _static(language_model: Inventory, trained: Inventory, needs: Needs, sizes: Sizes, own: int) -> dict[str, float]:
    states = next((size for name, size in _STATES if sizes.optimizer.startswith(name)), 2.0)
    adapted = bool(trained.adapter_bytes)
    # Two states have the dtype of the weight, those of 8 bits not.
    each = trained.trained_bytes / max(trained.trained, 1)
    per_element = states * each if states in (1.0, 2.0) else states
    parts = {"weights": language_model.weights_bytes if needs.holds_language_model else 0.0}
    if trained is not language_model:
        parts["trained model"] = trained.weights_bytes
    parts["adapter"] = float(trained.trained_bytes if adapted else 0) + 4.0 * own
    parts["optimizer"] = trained.trained * per_element + own * (4 * states if states in (1.0, 2.0) else states)
    if needs.reference:
        parts["reference"] = float(trained.trained_bytes) if adapted else language_model.weights_bytes
    return parts


# --------------------------------------------------------------------------------------------------- a training step


def largest_part(k: int, sizes: Sizes) -> list[int]:
    """
    The completions of each prompt in the largest forward pass of a step.

    Args:
        k (`int`): Completions of a prompt in the step.
        sizes ([`Sizes`]): The settings.
    """
    size = sizes.per_forward
    if not size or k <= size:
        prompts = min(sizes.prompts, size // k) if size else sizes.prompts
        return [k] * prompts
    if k % size and sizes.prompts > 1:  # the rest of a prompt, and the first of the next one
        return [k % size, size - k % size]
    return [size]


def positions(k: int, sizes: Sizes, model: Inventory) -> tuple[int, int, str]:
    """
    Positions of a forward pass that go through the layers, those of them that predict a token, and the form of rows.

    Args:
        k (`int`): Completions of a prompt.
        sizes ([`Sizes`]): The settings.
        model ([`~trl_ext.memory.inventory.Inventory`]): The model that reads them.
    """
    groups = largest_part(k, sizes)
    shared = "cascade" if sizes.gpu else "dense"
    layout = Layout(shared if model.shares_rows else "separate", "for an estimate")
    lengths = [range(sizes.prompt)] * len(groups), [[range(sizes.completion)] * n for n in groups]
    form = choose_form(layout, *lengths, model.hidden, sizes.shared_prefix)
    predicted = sum(groups) * sizes.completion
    prompts_read = sum(groups) if form == "separate" else len(groups)
    return predicted + prompts_read * (sizes.prompt - 1), predicted, form


def _compute(model: Inventory, sizes: Sizes) -> int:
    return 2 if sizes.autocast else model.weight_bytes


def kept_for_backward(model: Inventory, compute: int, autocast: bool) -> float:
    """Bytes that autograd keeps for each position, in all layers, but for copies of weights."""
    residual, adapter = model.weight_bytes, model.adapter_bytes
    # Norms compute in float32. Their weight, if it is trained, keeps what it multiplies.
    size = model.norms * (4.0 + (residual if model.is_trained_whole else 0))
    size += 2 * compute * (model.queries + model.keys)  # queries, keys, values, and the output
    gated = model.first_halves > model.product
    size += compute * (model.first_halves + (model.product if gated else 0))
    # What a linear map reads is kept for the gradient of its own weight, or of an adapter on it.
    shared = {True: 0, False: 0}
    for linear in model.linears:
        size += linear.rank * compute
        dtype = adapter if linear.rank else compute
        if not (linear.rank or linear.trained):
            continue
        if linear.source == "norm" and residual == dtype == compute:
            shared[linear.in_attention] = max(shared[linear.in_attention], linear.inputs)
        elif linear.source != "attention" or dtype != compute:  # the output of the heads is kept already
            size += linear.inputs * (compute if autocast else dtype)
    size += sum(shared.values()) * model.layers * compute
    return size + 2 * compute * model.experts


def _copies(model: Inventory, compute: int) -> float:
    """Bytes of the copies of weights that autocast makes in half precision, of all layers."""
    return model.linear * compute if model.weight_bytes != compute and not model.bits else 0.0


def _training(model: Inventory, needs: Needs, sizes: Sizes, own: int) -> dict[str, dict[str, float]]:
    """The bytes of a step at the moments that may need most: in the head, in the last, and in the first layer."""
    if needs.update is not None:
        return {"update": {"activations": needs.update(model, sizes, needs.trained), "gradients": 4.0 * own}}
    compute, residual = _compute(model, sizes), model.weight_bytes
    tokens, predicted, form = positions(needs.trained, sizes, model)
    whole = model.is_trained_whole
    repeated = 2.0 * compute * (model.queries - model.keys) * (form == "dense")  # a mask repeats keys for all heads
    layers, copies = (kept_for_backward(model, compute, sizes.autocast) + repeated) * tokens, _copies(model, compute)
    one, outside = layers / model.layers, 0.0 if sizes.offloading else 1.0
    checkpoints = float(tokens * model.hidden * residual) * model.layers * outside
    final = float(tokens * model.hidden * (4 + residual * whole) + predicted * model.hidden * residual)
    gradients = float(model.trained_bytes + 4 * own)
    in_parts = sizes.prompts * needs.trained > sum(largest_part(needs.trained, sizes))
    adds = sizes.accumulation > 1 or in_parts  # to gradients of earlier backward passes
    before = gradients if adds else 0.0
    table = float(model.vocabulary * model.hidden)
    of_head = (4 + (residual if residual < 4 else 0)) * table * whole * needs.log_probs
    working = _working(model, tokens, compute)
    if sizes.checkpointing:
        kept, last, copied = checkpoints, checkpoints + one, copies / model.layers
        cached = copies if whole else copied
    else:
        kept = last = layers * outside if sizes.offloading else layers
        copied = cached = copies
    logits = _tile(model, predicted, compute, sizes.gpu) * needs.log_probs
    embedding = table * residual * whole * (adds or not model.head)
    read = tokens * sizes.prompts * needs.trained / sum(largest_part(needs.trained, sizes))
    between = {"log-probabilities": _BETWEEN_PASSES * read * in_parts}
    phases = {
        "head, forward": {"activations": kept + final + cached, "logits": logits, "gradients": before},
        "head, backward": {
            "activations": kept + final + (0 if sizes.checkpointing else copies),
            "logits": logits + 4.0 * predicted * model.hidden * needs.log_probs,
            "gradients": before + of_head,
        },
        "last layer": {
            "activations": last + copied + working,
            "gradients": before or min(table * residual * whole * needs.log_probs, gradients),
        },
        "first layer": {
            "activations": (checkpoints / model.layers if sizes.checkpointing else 0.0)
            + one + copies / model.layers + working
            + (tokens * model.hidden * residual if model.adapter_bytes else 0),
            "gradients": max(gradients * (1 - 1 / model.layers) - table * residual * whole, before),
        },
        "embedding": {"gradients": gradients + embedding},
        "optimizer": {"gradients": gradients * (2 if sizes.optimizer == "adamw_torch" else 1)},
    }  # fmt: skip
    return {name: parts if name == "optimizer" else parts | between for name, parts in phases.items()}


def _working(model: Inventory, tokens: int, compute: int) -> float:
    """
    Bytes that the backward pass of a layer holds at once beside what was kept for it.

    Two gradients between the halves of an MLP and one of the residual, and those that an adapter in float32 returns.
    """
    cast = {each.source for each in model.linears if each.rank} if model.adapter_bytes > compute else set()
    working = tokens * (2 * compute + 4 * ("mlp" in cast)) * model.product / model.layers
    working += tokens * model.hidden * (compute + 4 * ("norm" in cast))
    largest = max((each.weights for each in model.linears), default=0)
    return working + (largest * compute if model.bits else 0)  # a 4-bit weight is dequantized for each product


def _tile(model: Inventory, predicted: int, compute: int, gpu: bool) -> float:
    """Bytes of the logits that a fused head computes at a time, and of the weights that it casts for them."""
    tokens, words = _TILE if gpu else (0, model.vocabulary)
    cast = min(model.vocabulary, words) * model.hidden * compute if model.weight_bytes != compute else 0
    chunk = (
        min(predicted, tokens) * words * compute
        if gpu
        else _CHUNKED_LOGIT * min(predicted * words, lm_head.CHUNK_ELEMENTS)
    )
    return float(chunk + cast)


# -------------------------------------------------------------------------------------------------------- generation


def _generation(model: Inventory, needs: Needs, sizes: Sizes) -> dict[str, float]:
    """The bytes of generation, while prompts are read or while tokens are sampled, whichever needs more."""
    compute, residual = _compute(model, sizes), model.weight_bytes
    copied = float(model.parameters * 2) if sizes.cast and sizes.autocast and residual == 4 else 0.0
    if copied:
        residual = compute = 2
    rows, prompts = generated_rows(needs, sizes)
    per_token = float(model.keys * (residual + compute))  # rotary positions leave keys in the dtype of the residual
    columns = sizes.prompt + sizes.completion
    read = per_token * prompts * sizes.prompt
    if sizes.graphs:  # allocated once; prompts are read into a cache of their own, and copied for their sequences
        cache = per_token * rows * static_columns(columns + needs.candidates + 1)
        reading, copying = 2 * read, read + per_token * rows * sizes.prompt
    else:  # grows by 64 tokens; the layers' caches are copied one after another
        cache, reading = 0.0, read
        copying = read + per_token * rows * (columns + 64 + sizes.prompt / model.layers)
    reading += prompts * sizes.prompt * _without_gradients(model, compute, residual)
    new = needs.candidates + 1
    scores = float(rows * model.heads * new * columns * (4 + 2 * compute))
    logits = float(rows * model.vocabulary * _SAMPLED_LOGIT)
    sampling = scores + rows * new * _without_gradients(model, compute, residual)
    full = cache if sizes.graphs else per_token * rows * (columns + 64)
    activations = max(reading, copying, full - cache + sampling + logits)
    kept = needs.kept * model.hidden * compute * sizes.completion * needs.generated
    kept *= sizes.round or sizes.prompts * sizes.accumulation
    return {
        "KV cache": max(cache, min(full, activations)),
        "logits": min(logits, activations),
        "activations": max(0.0, activations - (full - cache) - logits) + _generation_copies(model, compute, residual),
        "kept for updates": kept,
        "copy for generation": copied,
    }


def _without_gradients(model: Inventory, compute: int, residual: int) -> float:
    """Bytes of a position in the layers: both halves of an MLP, embedding and residual, and what norms return."""
    halves = model.first_halves + model.product * (2 if model.adapter_bytes else 1)
    return compute * halves / model.layers + model.hidden * (4 * residual + (compute if residual != compute else 0))


def _generation_copies(model: Inventory, compute: int, residual: int) -> float:
    """Bytes of weights in the dtype of the arithmetic: all of them if autocast keeps them, or one."""
    largest = float(max((each.weights for each in model.linears), default=0) * compute)
    if model.bits:
        return largest
    if residual == compute:
        return 0.0
    return (model.linear * compute if model.is_trained_whole else largest) + model.vocabulary * model.hidden * compute


def generated_rows(needs: Needs, sizes: Sizes) -> tuple[int, int]:
    """Sequences that are generated at once, and the prompts that they belong to."""
    prompts = max(1, sizes.rows // needs.generated)
    if sizes.round:
        prompts = min(prompts, sizes.round * needs.completions // needs.generated)
    return prompts * min(needs.generated, sizes.rows), prompts
