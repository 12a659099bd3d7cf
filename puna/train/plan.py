"""What a training run needs before it is paid for: memory by rank, communication, time, energy, cost.

In:  a model's sizes, the batch, a machine, and how many GPUs in which mesh.
Out: a Plan; `search` tries every mesh and returns the fastest that fit.

    ranks = dp_replicate × dp_shard × tp      neighbouring ranks: tp first, then dp_shard, then dp_replicate

Formulas alone: torch is not imported. A step takes as long as the slowest of three that run at the same time:
arithmetic at a stated share of the peak (MFU), traffic within nodes, and traffic between nodes; on a CPU as
long as their sum, because all take the same cores.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from math import ceil, inf

from puna.carbon import Footprint
from puna.config import Activations, MeshConfig, ModelConfig
from puna.model.sizes import (
    LOGITS_ROWS_ON_GPU,
    parameters,
    saved_bytes_per_token_and_layer,
    train_flops_per_token,
)
from puna.recipes import recipe
from puna.train.machines import Machine

MFU = 0.485
"""Share of the peak: the mean of the paper's four sizes, from the GPU-hours of Table 15."""
USABLE = 0.92
"""Share of a GPU's memory that tensors may fill; the rest is CUDA's, NCCL's and fragmentation."""
MAX_TP = 8


@dataclass(frozen=True)
class Job:
    """What is to be trained."""

    model: ModelConfig
    batch_tokens: int
    tokens: float
    """Tokens of the whole run."""
    activations: Activations = "manual"
    compute_bytes: int = 2
    """Bytes of a number in the products: 2 for bf16, 4 for fp32."""
    gather_bytes: int = 2
    """Bytes of a gathered weight: FSDP gathers in bf16 on GPUs, in fp32 on CPUs."""
    logits_rows: int = LOGITS_ROWS_ON_GPU
    """Rows of a block of logits."""
    packed_bytes: int = 0
    """Bytes of a number in the packed weights of puna's CPU kernels; 0 where they do not run."""
    heap_holes: float = 0.0
    """On a CPU: what stays unused in the heap between blocks, as a share of what is allocated and freed."""
    trained: float = 1.0
    """Share of the parameters that train; with adapters, whose weights are frozen, far below 1."""

    @property
    def sequences(self) -> int:
        """Sequences of a step."""
        return self.batch_tokens // self.model.context


def job_of(
    recipe_name: str,
    activations: Activations = "manual",
    batch_tokens: int | None = None,
    tokens: float | None = None,
    context: int | None = None,
) -> Job:
    """A recipe as a job, with another batch, length or context where they are given.

    Raises:
        ValueError: an unknown recipe, an invalid context, a batch or a length without a whole sequence.
    """
    chosen = recipe(recipe_name)
    model = chosen.model if context is None else replace(chosen.model, context=context)
    model.validate()
    schedule = chosen.schedule
    batch = schedule.batch_tokens if batch_tokens is None else batch_tokens
    whole = float(schedule.batch_tokens) * schedule.steps if tokens is None else tokens
    if batch < 1 or batch % model.context:
        raise ValueError(
            f"--batch-tokens is {batch}; expected a multiple of the context, {model.context} tokens"
        )
    if not 0 < whole < inf:
        raise ValueError(f"--tokens is {whole:g}; expected a positive number")
    return Job(model, batch, whole, activations)


@dataclass(frozen=True)
class Traffic:
    """A kind of collective, in bytes that each rank sends in a step."""

    name: str
    bytes: float
    between_nodes: bool


@dataclass(frozen=True)
class Plan:
    """What a job needs on a mesh of a machine."""

    job: Job
    machine: Machine
    mesh: MeshConfig
    micro_batch: int
    """Sequences of a rank that are computed together."""
    mfu: float
    memory: dict[str, float]
    """Bytes of a rank, by what holds them."""
    traffic: list[Traffic] = field(repr=False)

    @property
    def total_memory(self) -> float:
        """Bytes of a rank."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether a rank's tensors fit into the machine's memory, with room for what is not counted."""
        return self.total_memory <= USABLE * self.machine.memory_gb * 1e9

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of a step, by what takes them; they run at the same time, if the machine overlaps them."""
        flops = train_flops_per_token(self.job.model) * self.job.batch_tokens * _recomputed(self.job)
        within = sum(item.bytes for item in self.traffic if not item.between_nodes)
        between = sum(item.bytes for item in self.traffic if item.between_nodes)
        return {
            "arithmetic": flops / self.mesh.ranks / (self.machine.peak_tflops * 1e12 * self.mfu),
            "traffic within nodes": within / (self.machine.link_gbs * 1e9),
            "traffic between nodes": between / (self.machine.network_gbs * 1e9),
        }

    @property
    def bound(self) -> str:
        """What the step waits for."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def step_seconds(self) -> float:
        """Seconds of an optimiser step."""
        seconds = self.seconds.values()
        return max(seconds) if self.machine.overlaps else sum(seconds)

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Training throughput of one rank."""
        return self.job.batch_tokens / self.step_seconds / self.mesh.ranks

    @property
    def days(self) -> float:
        """Days of the whole run."""
        return self.job.tokens / self.tokens_per_second_per_gpu / self.mesh.ranks / 86_400

    @property
    def footprint(self) -> Footprint:
        """GPU-hours, energy and emissions of the whole run."""
        return Footprint(self.days * 24 * self.mesh.ranks, self.machine.watts)


def plan(
    job: Job, machine: Machine, mesh: MeshConfig, micro_batch: int | None = None, mfu: float = MFU
) -> Plan:
    """Count what a job needs. `micro_batch` None: the largest that fits, else 1.

    Raises:
        ValueError: a mesh that the model or the batch cannot be divided among, naming the flag.
    """
    mesh.divide(job.model, job.sequences)
    if not machine.bf16:
        job = replace(job, compute_bytes=4, gather_bytes=4)
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu is {mfu:g}; expected a share of the peak, above 0 and at most 1")
    per_rank = job.sequences // mesh.dp
    if micro_batch is not None and not 1 <= micro_batch <= per_rank:
        raise ValueError(f"micro-batch is {micro_batch}; a rank has {per_rank} sequences in a step")
    choices = [micro_batch] if micro_batch else [n for n in range(per_rank, 0, -1) if per_rank % n == 0]
    for chosen in choices:
        memory, traffic = _memory(job, mesh, chosen), _traffic(job, machine, mesh, chosen)
        found = Plan(job, machine, mesh, chosen, mfu, memory, traffic)
        if found.fits:
            break
    return found


def best_plan(
    job: Job,
    machine: Machine,
    gpus: int,
    mesh: MeshConfig | None = None,
    micro_batch: int | None = None,
    mfu: float = MFU,
) -> Plan:
    """The plan on a mesh, or on the fastest of all that fit; if none does, on the smallest.

    Raises:
        ValueError: the mesh has not `gpus` ranks, or does not divide the model or the batch.
    """
    if mesh is None:
        fitting, others = search(job, machine, gpus, micro_batch, mfu)
        return (fitting + others)[0]
    if mesh.ranks != gpus:
        raise ValueError(f"--parallel is {mesh}, which makes {mesh.ranks} ranks, but --gpus is {gpus}")
    return plan(job, machine, mesh, micro_batch, mfu)


def search(
    job: Job, machine: Machine, gpus: int, micro_batch: int | None = None, mfu: float = MFU
) -> tuple[list[Plan], list[Plan]]:
    """Every mesh of `gpus` ranks: those that fit, fastest first, and those that do not, smallest first.

    Raises:
        ValueError: no mesh divides the model and the batch.
    """
    if gpus < 1:
        raise ValueError(f"--gpus is {gpus}; expected at least 1")
    plans = [plan(job, machine, mesh, micro_batch, mfu) for mesh in _meshes(job, gpus)]
    if not plans:
        raise ValueError(
            f"no mesh of {gpus} GPUs divides {job.sequences} sequences and {job.model.kv_heads} kv heads; "
            "change --gpus or --batch-tokens"
        )
    fitting = [item for item in plans if item.fits]
    # Of equally fast meshes, the one with the least traffic, then the one with the most room.
    fitting.sort(key=lambda item: (item.step_seconds, sum(item.seconds.values()), item.total_memory))
    return fitting, sorted((item for item in plans if not item.fits), key=lambda item: item.total_memory)


def _meshes(job: Job, gpus: int) -> Iterator[MeshConfig]:
    for tp in (n for n in range(1, MAX_TP + 1) if gpus % n == 0):
        for shard in (n for n in range(1, gpus // tp + 1) if gpus // tp % n == 0):
            mesh = MeshConfig(tp, shard, gpus // tp // shard)
            try:
                mesh.divide(job.model, job.sequences)
            except ValueError:
                continue
            yield mesh


def _block_elements(model: ModelConfig, tp: int) -> tuple[float, float]:
    """Numbers of a block on a tp rank: its matrices, its norms (which are not split)."""
    attention = model.dim * model.head_dim * (2 * model.n_heads + 2 * model.kv_heads)
    return (attention + 3 * model.dim * model.ffn_dim) / tp, 2 * model.dim


def _root_elements(model: ModelConfig, tp: int) -> float:
    """Numbers outside the blocks on a tp rank: embedding, output projection, last norm."""
    tables = 1 if model.tied_embeddings else 2
    return tables * ceil(model.vocab_size / tp) * model.dim + model.dim


def _memory(job: Job, mesh: MeshConfig, micro_batch: int) -> dict[str, float]:
    """Bytes of a rank at the fullest of three moments of the last micro-batch.

    The loss; the backward of the last block's feed-forward, when all activations are still there; the end of
    the backward. The model itself, run on tensors without values (dry_run.py), needs as much within 5 %.
    """
    model, tp = job.model, mesh.tp
    block = sum(_block_elements(model, tp))
    root = _root_elements(model, tp)
    whole = model.n_layers * block + root
    owned = whole / mesh.dp_shard
    tokens = micro_batch * model.context
    table = ceil(model.vocab_size / tp) * model.dim
    accumulates = job.sequences // mesh.dp > micro_batch
    held = {"parameters": 4 * owned, "optimiser moments": 8 * owned * job.trained}
    held["rotary tables"] = 2 * 4 * model.context * model.head_dim / 2
    # FSDP2 adds up the gradients of micro-batches in the weights' whole shape, before it reduces them.
    summed = 4 * whole * job.trained if accumulates else 0.0
    gathered = job.gather_bytes if mesh.dp_shard > 1 else 0
    loss = {
        "gradients": summed,
        "gathered layers": (block + root) * gathered,
        "activations": _activations(job, tp, tokens),
        "logits and loss": _loss(job, tp, tokens),
        "packed weights": 2 * table * job.packed_bytes,
    }
    feed_forward = {
        "gradients": summed or 4 * table * (job.trained == 1),
        "gathered layers": (2 * block + root) * gathered,
        "activations": _activations(job, tp, tokens),
        "gradients of activations": _feed_forward(job, tp) * tokens,
        "logits and loss": 4 * table if accumulates and job.trained == 1 else 0.0,
        "packed weights": model.dim * model.ffn_dim / tp * job.packed_bytes,
    }
    end = {
        "gradients": summed or 4 * job.trained * (whole if mesh.dp == 1 else owned + block + root),
        "gradients being reduced": 4 * job.trained * (block + owned if mesh.dp > 1 and accumulates else 0.0),
        "gathered layers": (2 * block + root) * gathered,
        "activations": _activations(job, tp, tokens) / model.n_layers,
        "logits and loss": 4 * table if accumulates else 0.0,
        "packed weights": 2 * model.dim * model.ffn_dim / tp * job.packed_bytes,
    }
    fullest = max(loss, feed_forward, end, key=lambda moment: sum(moment.values()))
    if job.heap_holes:
        # A heap does not shrink again: when the root's gradients are copied and reduced, that comes on top.
        reduced = 4 * job.trained * (root + root / mesh.dp_shard) if mesh.dp > 1 else 0.0
        fullest["gradients being reduced"] = fullest.get("gradients being reduced", 0.0) + reduced
        fullest["holes in the heap"] = job.heap_holes * sum(fullest.values())
    return held | fullest


def _activations(job: Job, tp: int, tokens: int) -> float:
    """What is saved for backward, and the block that is being computed."""
    model = job.model
    manual = saved_bytes_per_token_and_layer(model, job.compute_bytes) / tp
    if job.activations == "full":  # block inputs, and one block recomputed
        return tokens * (model.n_layers * 4 * model.dim / tp + manual)
    if job.activations == "none":  # autograd also saves the normalised inputs, silu and the rotated q and k
        extra = (2 * 4 + 2 * job.compute_bytes) * model.dim + job.compute_bytes * (
            2 * model.ffn_dim + model.head_dim * (model.n_heads + model.kv_heads)
        )
        return tokens * model.n_layers * (manual + extra / tp)
    return tokens * model.n_layers * manual


def _feed_forward(job: Job, tp: int) -> float:
    """Bytes per token of the gradients in a block's feed-forward: of its output, of z, gate and up; and z."""
    return 4 * job.model.dim / tp + 4 * job.model.ffn_dim / tp * job.compute_bytes


def _loss(job: Job, tp: int, tokens: int) -> float:
    """Hidden states, the projection in the compute precision, a block of logits; the gradients of each."""
    vocabulary = ceil(job.model.vocab_size / tp)
    hidden = tokens * job.model.dim * 2 * job.compute_bytes
    projection = (
        vocabulary
        * job.model.dim
        * (4 * (job.trained == 1) + (job.compute_bytes if job.compute_bytes < 4 else 0))
    )
    # With a vocabulary that is split, the probabilities are computed in fp32, in several passes.
    numbers = 2 * job.compute_bytes + (8 if tp > 1 else 0)
    return hidden + projection + min(tokens, job.logits_rows) * vocabulary * numbers


def _traffic(job: Job, machine: Machine, mesh: MeshConfig, micro_batch: int) -> list[Traffic]:
    """Ring collectives: a rank sends (n - 1) / n of what is gathered or reduced."""
    model, tp, shard, copies = job.model, mesh.tp, mesh.dp_shard, mesh.dp_replicate
    whole = model.n_layers * sum(_block_elements(model, tp)) + _root_elements(model, tp)
    micro_steps = ceil(job.sequences / mesh.dp / micro_batch)
    node = machine.gpus_per_node
    found = []
    if tp > 1:
        # Forward: gather and reduce-scatter, twice; backward: the same, and the inputs gathered again.
        tokens = job.sequences / mesh.dp * model.context
        sent = 10 * model.n_layers * (tp - 1) / tp * tokens * model.dim * job.compute_bytes
        found.append(Traffic("tensor parallelism: activations", sent, tp > node))
    if shard > 1:
        passes = 2 * micro_steps  # forward and backward
        sent = passes * (shard - 1) / shard * whole * job.gather_bytes
        found.append(Traffic("FSDP: gathered weights", sent, tp * shard > node))
        sent = (shard - 1) / shard * whole * 4
        found.append(Traffic("FSDP: reduced gradients", sent, tp * shard > node))
    if copies > 1:
        sent = 2 * (copies - 1) / copies * whole / shard * 4
        found.append(Traffic("replicas: all-reduced gradients", sent, mesh.ranks > node))
    return found


def _recomputed(job: Job) -> float:
    """Arithmetic relative to a step without recomputation: `full` computes every forward twice.

    Frozen weights have no gradient, which is a third of it.
    """
    return (4 / 3 if job.activations == "full" else 1.0) - (1 / 3 if job.trained < 1 else 0.0)


def describe(found: Plan, price: float | None = None) -> dict[str, object]:
    """A plan as JSON values; `price` is that of a GPU-hour."""
    footprint = found.footprint
    result: dict[str, object] = {
        "parameters": parameters(found.job.model),
        "machine": found.machine.name,
        "gpus": found.mesh.ranks,
        "mesh": asdict(found.mesh),
        "micro_batch": found.micro_batch,
        "activations": found.job.activations,
        "memory": found.memory,
        "total_memory": found.total_memory,
        "fits": found.fits,
        "flops_per_token": train_flops_per_token(found.job.model),
        "mfu": found.mfu,
        "traffic": [asdict(item) for item in found.traffic],
        "seconds": found.seconds,
        "bound": found.bound,
        "step_seconds": found.step_seconds,
        "tokens_per_second_per_gpu": found.tokens_per_second_per_gpu,
        "days": found.days,
        "gpu_hours": footprint.gpu_hours,
        "mwh": footprint.mwh,
        "tco2eq": footprint.tco2eq,
    }
    return result if price is None else {**result, "cost": price * footprint.gpu_hours}
