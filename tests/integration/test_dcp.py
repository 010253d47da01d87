"""Checkpoints of ``torch.distributed.checkpoint``, saved and loaded by real ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock
from integration.conftest import Machine, make_writable_lake
from penstock.errors import NotFoundError

torch: Any = pytest.importorskip("torch", reason="needs torch")

import torch.distributed.checkpoint as dcp  # noqa: E402

from integration.ranks import COLUMNS, NAMES, ROWS, TENSOR_BYTES, WORLD  # noqa: E402
from penstock.integrations.dcp import Reader, Writer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

READ_ALLOWED = 1.05
"""Bytes read by a load, at most so many times what it needs."""


class Crew:
    """Four ranks that do what they are told."""

    def __init__(self, directory: Path) -> None:
        self.errors = directory / "errors"
        with self.errors.open("wb") as errors:
            command = [sys.executable, "-m", "integration.ranks", str(directory / "rendezvous")]
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=Path(__file__).parents[1],
            )

    def __call__(self, do: str, **job: Any) -> list[Any]:
        """What each rank that took part returned; or the text of its failure."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **job}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        answers = json.loads(line)[: job.get("ranks", WORLD)]
        return [answer.get("failure") or answer["answer"] for answer in answers]

    def close(self) -> None:
        self.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    made = Crew(tmp_path_factory.mktemp("ranks"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A machine with /runs to be written, and ``home`` as the ranks are told it."""
    machine = Machine(tmp_path_factory.mktemp("lake"))
    try:
        made = make_writable_lake(machine)
        made.where = str(machine.home.name)
        yield made
        made.client.close()
    finally:
        machine.close()


@pytest.fixture
def elsewhere(lake: Any, tmp_path: Path) -> Iterator[Any]:
    """A machine that has nothing cached, with the same source at /runs."""
    machine: Any = Machine(tmp_path / "elsewhere")
    machine.directory.mkdir()
    try:
        machine.client = penstock.connect(machine.home.name)
        machine.client.attach(f"file://{lake.root}", "/runs")
        machine.where = str(machine.home.name)
        yield machine
        machine.client.close()
    finally:
        machine.close()


def source_bytes(machine: Any) -> int:
    return int(machine.control().status()["metrics"]["source_bytes"])


def state(seed: int = 1) -> dict[str, Any]:
    """Tensors of several types, sizes and layouts, and what is no tensor."""
    chance = torch.Generator().manual_seed(seed)
    tensors = {
        "large": torch.randn(2200, 2048, generator=chance),
        "turned": torch.randn(300, 500, generator=chance).t(),
        "half": torch.randn(700, 60, generator=chance).bfloat16(),
        "part": torch.randn(100, 100, generator=chance)[10:20, 5:50],
        "scalar": torch.randn((), generator=chance),
        "empty": torch.empty(0, 3),
        "flags": torch.randn(77, generator=chance) > 0,
    }
    return {"model": tensors, "step": seed, "options": {"lr": [0.1, 0.2], "name": "adam"}}


def blank() -> dict[str, Any]:
    tensors = {name: torch.zeros_like(tensor) for name, tensor in state()["model"].items()}
    return {"model": tensors, "step": 0, "options": {"lr": [0.0, 0.0], "name": ""}}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = all(torch.equal(one["model"][name], other["model"][name]) for name in other["model"])
    return tensors and (one["step"], one["options"]) == (other["step"], other["options"])


def load(reader: Any) -> dict[str, Any]:
    loaded = blank()
    dcp.load(loaded, storage_reader=reader)
    return loaded


def test_what_one_process_saves_it_loads_again_before_and_after_the_upload(lake: Any, elsewhere: Any) -> None:
    dcp.save(state(), storage_writer=Writer("/runs/one", client=lake.client))
    assert same(load(Reader("/runs/one", home=lake.where)), state())
    lake.client.persist("/runs", timeout=60)
    assert same(load(Reader("/runs/one", client=lake.client)), state())
    assert same(load(Reader("/runs/one", client=elsewhere.client)), state())
    assert same(load(Reader("/runs/one", client=elsewhere.client)), state())


def test_tensors_of_another_type_and_layout_are_loaded_into(lake: Any) -> None:
    dcp.save({"a": torch.arange(6e6).reshape(2000, 3000)}, storage_writer=Writer("/runs/typed", client=lake.client))
    loaded = {"a": torch.zeros(3000, 2000, dtype=torch.float64).t()}
    dcp.load(loaded, storage_reader=Reader("/runs/typed", client=lake.client))
    assert torch.equal(loaded["a"], torch.arange(6e6, dtype=torch.float64).reshape(2000, 3000))


def test_what_torch_saved_itself_is_loaded_and_only_what_is_wanted_of_it(lake: Any, elsewhere: Any) -> None:
    dcp.save(state(2), storage_writer=dcp.FileSystemWriter(lake.root / "torchs", thread_count=2))
    assert same(load(Reader("/runs/torchs", client=elsewhere.client)), state(2))
    elsewhere("evict", "/runs")
    before = source_bytes(elsewhere)
    wanted = {"model": {"turned": torch.zeros(500, 300)}}
    dcp.load(wanted, storage_reader=Reader("/runs/torchs", client=elsewhere.client))
    assert torch.equal(wanted["model"]["turned"], state(2)["model"]["turned"])
    assert source_bytes(elsewhere) - before < 2_000_000


def test_a_checkpoint_that_is_not_there_or_was_cut_off_is_named(lake: Any) -> None:
    with pytest.raises(dcp.api.CheckpointException, match=r"there is no complete checkpoint: \.metadata is missing"):
        load(Reader("/runs/nothing", client=lake.client))
    dcp.save(state(), storage_writer=dcp.FileSystemWriter(lake.root / "cut"))
    with next((lake.root / "cut").glob("*.distcp")).open("r+b") as file:
        file.truncate(1 << 20)
    with pytest.raises(dcp.api.CheckpointException, match="the metadata of the checkpoint knows bytes up to"):
        load(Reader("/runs/cut", client=lake.client))


def test_a_second_checkpoint_at_the_same_path_is_refused_and_the_first_one_stays(lake: Any) -> None:
    writer = Writer("/runs/twice", client=lake.client)
    dcp.save(state(1), storage_writer=writer)
    with pytest.raises(dcp.api.CheckpointException, match="AlreadyExistsError"):
        dcp.save(state(2), storage_writer=writer)
    assert same(load(Reader("/runs/twice", client=lake.client)), state(1))
    dcp.save(state(2), checkpoint_id="penstock:///runs/another", storage_writer=writer)
    assert same(load(Reader("/runs/another", client=lake.client)), state(2))


def test_what_cannot_appear_together_is_refused(lake: Any) -> None:
    with pytest.raises(penstock.errors.UnsupportedError, match="leave use_collectives=True"):
        dcp.save(state(), storage_writer=Writer("/runs/alone", client=lake.client), use_collectives=False)
    with pytest.raises(ValueError, match="a checkpoint needs a path"):
        Writer(client=lake.client).set_up_storage_writer(True)
    with pytest.raises(ValueError, match="a home or a client"):
        Writer("/runs/a", client=lake.client, home=lake.where)
    with pytest.raises(ValueError, match="threads"):
        Reader("/runs/a", threads=0)
    assert Reader.validate_checkpoint_id("/runs/a")
    assert not Writer.validate_checkpoint_id("s3://bucket/runs")


def test_four_ranks_save_and_two_load_no_more_than_they_need(lake: Any, elsewhere: Any, crew: Crew) -> None:
    assert crew("save", path="/runs/four", home=lake.where) == [None] * WORLD
    assert crew("load", path="/runs/four", home=lake.where) == [True] * WORLD
    lake.client.persist("/runs", timeout=60)
    before = source_bytes(elsewhere)
    assert crew("load", path="/runs/four", home=elsewhere.where, ranks=2) == [True] * 2
    needed = TENSOR_BYTES * len(NAMES)
    read = source_bytes(elsewhere) - before
    print(f"read {read} of {needed} bytes, {read / needed:.4f}")
    assert needed <= read <= needed * READ_ALLOWED
    # Three share the rows out differently, so that parts of what one rank saved are read.
    assert crew("load", path="/runs/four", home=elsewhere.where, ranks=3) == [True] * 3
    assert source_bytes(elsewhere) - before == read


def test_a_rank_that_wants_half_of_a_tensor_reads_half_of_it(lake: Any, elsewhere: Any) -> None:
    whole = torch.arange(ROWS * COLUMNS, dtype=torch.float32).reshape(ROWS, COLUMNS)
    dcp.save({"whole": whole}, storage_writer=Writer("/runs/whole", client=lake.client))
    lake.client.persist("/runs", timeout=60)
    reader = Reader("/runs/whole", client=elsewhere.client)
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, True)
    half = torch.zeros(ROWS // 2, COLUMNS)
    [index] = metadata.storage_data
    item = dcp.planner.ReadItem(
        type=dcp.planner.LoadItemType.TENSOR,
        dest_index=index,
        dest_offsets=torch.Size((0, 0)),
        storage_index=index,
        storage_offsets=torch.Size((ROWS // 3, 0)),
        lengths=half.size(),
    )
    planner = dcp.DefaultLoadPlanner()
    planner.state_dict = {"whole": half}
    before = source_bytes(elsewhere)
    reader.read_data(dcp.planner.LoadPlan([item]), planner).wait()
    assert torch.equal(half, whole[ROWS // 3 : ROWS // 3 + ROWS // 2])
    assert source_bytes(elsewhere) - before < half.nbytes * READ_ALLOWED + (256 << 10)


@pytest.mark.parametrize(("how", "ranks"), [("thread", WORLD), ("process", 1)])
def test_a_checkpoint_saved_behind_the_training_is_there_when_its_future_says_so(
    lake: Any, crew: Crew, how: str, ranks: int
) -> None:
    assert crew("save", path=f"/runs/{how}", home=lake.where, how=how, ranks=ranks) == [None] * ranks
    assert crew("load", path=f"/runs/{how}", home=lake.where, ranks=2) == [True] * 2


def test_nothing_appears_when_a_rank_fails_and_the_next_save_does(lake: Any, crew: Crew) -> None:
    for failing in (0, 2):
        answers = crew("save", path="/runs/failed", home=lake.where, failing=failing)
        assert all("RankFailedError: out of memory" in answer for answer in answers), answers
        with pytest.raises(NotFoundError):
            lake.client.stat("/runs/failed")
        assert not [entry.name for entry in lake.client.list("/runs") if "failed" in entry.name]
    assert crew("save", path="/runs/failed", home=lake.where) == [None] * WORLD
    assert crew("load", path="/runs/failed", home=lake.where) == [True] * WORLD


def test_a_node_that_is_killed_before_the_commit_leaves_nothing_and_after_it_everything(
    lake: Any, elsewhere: Any
) -> None:
    class Killed(Writer):
        def finish(self, metadata: Any, results: Any) -> None:
            lake.kill()
            super().finish(metadata, results)

    with pytest.raises(dcp.api.CheckpointException, match="UnavailableError"):
        dcp.save(state(), storage_writer=Killed("/runs/killed", client=lake.client))
    lake("up")
    with pytest.raises(NotFoundError):
        lake.client.stat("/runs/killed")
    dcp.save(state(3), storage_writer=Writer("/runs/killed", client=lake.client))
    lake.kill()
    lake("up")
    assert same(load(Reader("/runs/killed", client=lake.client)), state(3))
    lake.client.persist("/runs", timeout=60)
    assert same(load(Reader("/runs/killed", client=elsewhere.client)), state(3))
