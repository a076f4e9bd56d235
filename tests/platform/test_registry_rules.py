"""The registry with a client of ours: the order of writes, what goes back, what is found, what is refused."""

from __future__ import annotations

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from d2v_platform.registry import alias_turns, promotion, reload_check
from d2v_platform.registry.alias_history import history, notice_outside_moves
from d2v_platform.registry.alias_turns import AliasBusyError, Turn, turn
from d2v_platform.registry.from_run import RunCheckpoint, _as_composed, _choose, _stated, run_exactly_named
from d2v_platform.registry.model_versions import (
    KIND_TAG,
    LINEAGE_TAGS,
    RUN_TAG,
    WEIGHTS_TAG,
    ModelVersion,
    NewVersion,
    get_alias,
    get_version,
    list_models,
    show,
)
from d2v_platform.registry.promotion import GateRefusedError, gate_reasons, promote, rollback
from d2v_platform.registry.register import _already_there, _check_request, _fitting_tag
from d2v_platform.registry.reload_check import reload_problem
from d2v_platform.tracking.run_liveness import Heartbeat
from d2v_platform.tracking.scores import fitting_card
from data2vec.errors import ConfigError, Data2VecError


class Page(list[Any]):
    token: str | None = None


class MissingError(Exception):
    """As MLflow says that a name is unknown."""

    error_code = "RESOURCE_DOES_NOT_EXIST"


class Registry:
    """A registry in memory, two entries a page; a call named in ``failing`` breaks."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.versions: list[Any] = []
        self.failing: set[str] = set()

    def add(self, number: int, value: float, **tags: str) -> None:
        lineage = dict.fromkeys([*LINEAGE_TAGS, RUN_TAG], "x")
        plain = {KIND_TAG: "sentence_classifier", "metric.name": "mcc", "metric.value": str(value),
                 "metric.maximize": "true"}  # fmt: skip
        self.versions.append(
            SimpleNamespace(
                name="tiny", version=str(number), run_id=f"run{number}", source=f"models:/m-{number}",
                tags=lineage | plain | {k.replace("__", "."): v for k, v in tags.items()},
                description="# card", creation_timestamp=number * 1000,
            )
        )  # fmt: skip

    def get_registered_model(self, name: str) -> Any:
        if name != "tiny":
            raise MissingError(name)
        return SimpleNamespace(tags=dict(self.tags), aliases=dict(self.aliases))

    def search_registered_models(self, max_results: int, page_token: str | None = None) -> Page:
        page = Page([SimpleNamespace(name="tiny")] if page_token else [])
        page.token = None if page_token else "next"
        return page if page_token or max_results != 100 else Page([SimpleNamespace(name="tiny")])

    def search_model_versions(self, query: str, max_results: int, page_token: str | None) -> Page:
        assert query == "name = 'tiny'"
        start = int(page_token or 0)
        page = Page(self.versions[start : start + 2])
        page.token = str(start + 2) if start + 2 < len(self.versions) else None
        return page

    def set_registered_model_tag(self, name: str, key: str, text: str) -> None:
        if "tag" in self.failing:
            raise ConnectionError("away")
        self.tags[key] = text

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        self.tags.pop(key, None)

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        if "alias" in self.failing:
            raise ConnectionError("away")
        self.aliases[alias] = version


@pytest.fixture
def registry() -> Registry:
    found = Registry()
    for number, value in enumerate((50.0, 60.0, 70.0, 40.0, 80.0), start=1):
        found.add(number, value)
    return found


@pytest.fixture
def tracker(registry: Registry, home: Path) -> Any:
    return SimpleNamespace(client=registry, home=home)


# ---- moves of an alias ----------------------------------------------------------------------------------


def test_the_entry_of_a_move_is_written_before_the_alias(registry: Registry, tracker: Any) -> None:
    registry.failing = {"alias"}
    with pytest.raises(ConnectionError):
        promote(tracker, name="tiny", version=1, alias="best", by="me")
    (text,) = registry.tags.values()  # an entry without a move, never a move without one; and no turn is left
    entry = json.loads(text)
    assert (entry["from_version"], entry["to_version"], entry["by"]) == (None, 1, "me")
    registry.failing, registry.tags = {"tag"}, {}
    with pytest.raises(ConnectionError):
        promote(tracker, name="tiny", version=1, alias="best")
    assert registry.aliases == {}


def test_an_interrupted_promotion_held_nothing(registry: Registry, tracker: Any) -> None:
    for version in (1, 2):
        promote(tracker, name="tiny", version=version, alias="best")
    registry.failing = {"alias"}  # killed between the entry and the alias
    with pytest.raises(ConnectionError):
        promote(tracker, name="tiny", version=3, alias="best")
    assert [move.to_version for move in history(tracker, "tiny")] == [1, 2]
    notice_outside_moves(tracker, "tiny")
    registry.failing = set()
    assert rollback(tracker, name="tiny", alias="best").to_version == 1
    assert [(m.number, m.to_version) for m in history(tracker, "tiny")] == [(1, 1), (2, 2), (3, 1)]


def test_a_promotion_killed_after_the_alias_is_on_the_record(
    registry: Registry, tracker: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    promote(tracker, name="tiny", version=1, alias="best")

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "confirm_entry", killed)
        with pytest.raises(KeyboardInterrupt):
            promote(tracker, name="tiny", version=2, alias="best")
    assert [move.to_version for move in history(tracker, "tiny")] == [1, 2]
    promote(tracker, name="tiny", version=3, alias="best")
    assert [(m.to_version, m.outside, m.pending) for m in history(tracker, "tiny")] == [
        (1, False, False), (2, False, False), (3, False, False),
    ]  # fmt: skip
    assert rollback(tracker, name="tiny", alias="best").to_version == 2 and not caplog.records


# ---- turns ------------------------------------------------------------------------------------------------


def hosts(registry: Registry, tmp_path: Path, count: int) -> list[Any]:
    """Trackers with homes of their own: no file is shared."""
    return [SimpleNamespace(client=registry, home=tmp_path / str(number)) for number in range(count)]


def test_of_hosts_that_promote_at_once_each_sees_what_the_one_before_left(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(hosts(registry, tmp_path, 1)[0], name="tiny", version=4, alias="best")
    honest = promotion.gate_reasons

    def slowly(*given: Any, **more: Any) -> list[str]:
        time.sleep(0.1)
        return honest(*given, **more)

    monkeypatch.setattr(promotion, "gate_reasons", slowly)
    monkeypatch.setattr(alias_turns, "_LOOK_S", 0.002)

    def try_to(number: int, tracker: Any) -> bool:
        try:
            return promote(tracker, name="tiny", version=number, alias="best") is not None
        except GateRefusedError:
            return False

    with ThreadPoolExecutor(4) as pool:
        taken = dict(enumerate(pool.map(try_to, [1, 2, 3, 5], hosts(registry, tmp_path, 4))))
    moves = history(SimpleNamespace(client=registry), "tiny")
    assert registry.aliases == {"best": "5"} and taken[3]
    assert [move.from_version for move in moves] == [None, *(move.to_version for move in moves[:-1])]
    assert len(moves) == 1 + sum(taken.values())
    assert not [key for key in registry.tags if "turn" in key]


class Elsewhere(Turn):
    """A process of another machine: whether it lives is not to be seen here."""

    def _write(self) -> None:
        honest = Heartbeat.now()
        key = f"{alias_turns._TAG}{self._token}"
        owner = replace(honest, host="elsewhere").to_tag()
        text = json.dumps({"number": self._number, "owner": owner})
        self._client.set_registered_model_tag(self._name, key, text)


def test_who_comes_later_or_draws_waits(registry: Registry, tracker: Any) -> None:
    drawing = Elsewhere(registry, "tiny")
    drawing._write()
    for _ in range(2):  # nobody knows yet who is first; then it is the other
        with pytest.raises(AliasBusyError, match=r"are being moved by process \d+ on elsewhere"):
            turn(tracker, "tiny", 0.0).__enter__()
        drawing.draw()
    drawing.come(0.0)
    with drawing.kept():
        drawing.check()
    drawing.leave()
    with turn(tracker, "tiny", 0.0) as mine:
        late = Elsewhere(registry, "tiny")
        late.draw()
        with pytest.raises(AliasBusyError):
            late.come(0.0)
        mine.check()
        late.leave()


def test_who_is_silent_for_a_minute_loses_its_turn(
    registry: Registry, tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(alias_turns.time, "monotonic", lambda: clock[0])
    dead = Elsewhere(registry, "tiny")
    dead.draw()
    dead.come(0.0)
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += 7.0
        if len(slept) == 5:
            dead._write()  # still there after all

    monkeypatch.setattr(alias_turns.time, "sleep", sleep)
    with turn(tracker, "tiny", 600.0) as mine:
        assert 5 + 60 / 7 < len(slept) < 5 + 60 / 7 + 3, "from its last sign of life"
        with pytest.raises(AliasBusyError, match="silent for more than 60 s"):
            dead.check()
        mine.check()


def test_a_dead_process_of_this_machine_is_not_waited_for(registry: Registry, tracker: Any) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    owner = replace(Heartbeat.now(), pid=gone.pid).to_tag()
    registry.tags[f"{alias_turns._TAG}x"] = json.dumps({"number": 1, "owner": owner})
    with turn(tracker, "tiny", 0.0):
        assert len(registry.tags) == 1


def test_a_lost_turn_moves_nothing(registry: Registry, tracker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = promotion.write_entry

    def written(*given: Any) -> Any:
        for key in [key for key in registry.tags if "turn" in key]:
            del registry.tags[key]  # others took this process for dead
        return honest(*given)

    monkeypatch.setattr(promotion, "write_entry", written)
    with pytest.raises(AliasBusyError, match="nothing was changed"):
        promote(tracker, name="tiny", version=1, alias="best")
    assert registry.aliases == {} and history(tracker, "tiny") == []


def test_moves_are_numbered_and_told(registry: Registry, tracker: Any) -> None:
    first = promote(tracker, name="tiny", version="1", alias="best")
    assert (
        first is not None
        and first.reason.startswith("first holder")
        and "@" in first.by
        and not first.rollback
    )
    assert promote(tracker, name="tiny", version=1, alias="best") is None
    second = promote(tracker, name="tiny", version=3, alias="best", by="me")
    assert second is not None and second.reason == "mcc 70 against 50, same data"
    assert (second.number, second.from_version, second.to_version) == (2, 1, 3)
    for worse in (4, 2):
        with pytest.raises(GateRefusedError, match=f"tiny@best -> version {worse} refused"):
            promote(tracker, name="tiny", version=worse, alias="best")
    promote(tracker, name="tiny", version=4, alias="other")  # each alias has its own holder
    assert registry.aliases == {"best": "3", "other": "4"}
    entries = {k: json.loads(v) for k, v in registry.tags.items() if k.startswith("mlflow.d2v.history.")}
    assert [key[-4:] for key in entries] == ["0001", "0002", "0003"]
    assert [entry["to_version"] for entry in entries.values()] == [1, 3, 4]
    before = {**entries["mlflow.d2v.history.0003"], "number": 10, "alias": "older"}
    registry.tags |= {"history.0010": json.dumps(before), "note": "not a move"}
    assert [move.number for move in history(tracker, "tiny")] == [1, 2, 3, 10]
    # What MLflow's list of models shows: all that is not its own.
    assert {k: v for k, v in registry.tags.items() if not k.startswith(("mlflow.", "history"))} == {
        "best": "mcc 70, v3", "other": "mcc 40, v4", "note": "not a move",
    }  # fmt: skip
    assert set(registry.versions[0].tags) >= {"metric.value"}
    promote(tracker, name="tiny", version=5, alias="best")  # that "older" has gone is noted before it
    assert [move.number for move in history(tracker, "tiny")] == [1, 2, 3, 10, 11, 12]


def test_rollbacks_go_one_holder_further_each_time(registry: Registry, tracker: Any) -> None:
    for version in (1, 2, 3):
        promote(tracker, name="tiny", version=version, alias="best")
    move = rollback(tracker, name="tiny", alias="best", by="me")
    assert (move.from_version, move.to_version, move.rollback, move.by) == (3, 2, True, "me")
    assert move.reason == "rollback from version 3" and registry.aliases == {"best": "2"}
    assert rollback(tracker, name="tiny", alias="best").to_version == 1
    with pytest.raises(Data2VecError, match="no earlier holder is recorded"):
        rollback(tracker, name="tiny", alias="best")
    assert [entry.rollback for entry in history(tracker, "tiny")] == [False] * 3 + [True] * 2
    promote(tracker, name="tiny", version=5, alias="best")
    registry.versions = [v for v in registry.versions if v.version != "1"]
    with pytest.raises(Data2VecError, match="version 1, which held it before, was deleted"):
        rollback(tracker, name="tiny", alias="best")
    assert registry.aliases == {"best": "5"}


def test_an_alias_moved_outside_is_told_and_written_down_once(
    registry: Registry, tracker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    promote(tracker, name="tiny", version=2, alias="best")
    notice_outside_moves(tracker, "tiny")
    assert len(history(tracker, "tiny")) == 1 and not caplog.records
    registry.aliases = {"best": "4", "mine": "1"}  # in MLflow's pages
    notice_outside_moves(tracker, "tiny")
    notice_outside_moves(tracker, "tiny")
    found = [(m.alias, m.from_version, m.to_version, m.outside) for m in history(tracker, "tiny")]
    assert found == [("best", None, 2, False), ("best", 2, 4, True), ("mine", None, 1, True)]
    assert [record.message.partition(" was ")[0] for record in caplog.records] == ["tiny@best", "tiny@mine"]
    assert (
        "no gate has judged it" in caplog.text
        and "gave it to version 2, and now it is version 4" in caplog.text
    )
    assert registry.tags["best"] == "mcc 40, v4"
    del registry.aliases["mine"]
    promote(tracker, name="tiny", version=5, alias="best")  # judged against the one that holds it
    assert [(m.alias, m.to_version, m.outside) for m in history(tracker, "tiny")][3:] == [
        ("mine", None, True), ("best", 5, False),
    ]  # fmt: skip
    assert rollback(tracker, name="tiny", alias="best").to_version == 2  # not the one that no gate let in


def test_a_registry_that_one_may_only_read_is_used_all_the_same(
    registry: Registry, tracker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    registry.aliases, registry.failing = {"best": "1"}, {"tag"}
    notice_outside_moves(tracker, "tiny")
    assert "no gate has judged it" in caplog.text and "the history of tiny cannot be written" in caplog.text


@pytest.mark.parametrize(
    ("own", "held", "maximize", "passes"),
    [
        (80, 79, "true", True), (70, 79, "true", False), (79, 79, "true", True),
        (8, 9, "false", True), (10, 9, "false", False), (9, 9, "false", True), (8, 9, "False", True),
    ],
)  # fmt: skip
def test_a_downstream_score_has_its_own_direction(
    own: float, held: float, maximize: str, passes: bool
) -> None:
    def scored(number: int, value: float, **more: str) -> ModelVersion:
        tags = dict.fromkeys([*LINEAGE_TAGS, RUN_TAG], "x") | {
            KIND_TAG: "pretrained", "collapse": "false", "downstream.name": "wer",
            "downstream.data": "dev", "downstream.value": str(value), "downstream.maximize": maximize,
        } | more  # fmt: skip
        return ModelVersion("m", number, (), f"models:/m/{number}", "r", None, tags, "# card")

    reasons = gate_reasons(scored(2, own), scored(1, held), lambda: None)
    assert (reasons == []) == passes
    for tag in ("downstream.name", "downstream.data", "downstream.maximize"):
        assert gate_reasons(scored(2, own, **{tag: "other"}), scored(1, held), lambda: None) == []
        assert gate_reasons(scored(2, own, **{tag: ""}), scored(1, held, **{tag: ""}), lambda: None) == []
    unknown = scored(1, held, **{"downstream.value": "none"})
    assert gate_reasons(scored(2, own), unknown, lambda: None) == []


def test_a_model_that_is_no_package_of_ours_never_takes_an_alias(
    registry: Registry, tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    found = SimpleNamespace(package=None, path=Path("/model"))
    monkeypatch.setattr(promotion, "resolve", lambda uri, tracker: asked.append(uri) or found)
    monkeypatch.setattr(promotion, "reload_problem", lambda *words: asked.append(words))
    registry.add(6, 0, collapse="false", model__kind="pretrained")
    with pytest.raises(GateRefusedError, match="not an MLflow model made by d2v"):
        promote(tracker, name="tiny", version=6, alias="encoder")
    found.package = Path("/package")
    move = promote(tracker, name="tiny", version=6, alias="encoder")
    assert asked == ["models:/tiny/6"] * 2 + [(Path("/package"), Path("/model/check.json"))]
    assert move is not None and move.reason.startswith("first holder")
    registry.add(7, 0, collapse="false", model__kind="pretrained")
    again = promote(tracker, name="tiny", version=7, alias="encoder")
    assert again is not None and again.reason.startswith("not collapsed")


# ---- reading --------------------------------------------------------------------------------------------


def test_all_versions_are_found_newest_first(registry: Registry, tracker: Any) -> None:
    registry.aliases = {"b": "2", "a": "2", "c": "3"}
    registry.versions[4].tags["model.id"] = "m-own"
    registry.versions[0].source = "file:/somewhere"
    model = show(tracker, "tiny")
    assert [version.version for version in model.versions] == [5, 4, 3, 2, 1]
    assert model.aliases == {"a": 2, "b": 2, "c": 3}
    assert [m.name for m in list_models(tracker)] == ["tiny"]
    second = get_version(tracker, "tiny", "2")
    assert second == get_alias(tracker, "tiny", "a") == model.versions[3]
    assert (second.aliases, second.uri, second.run_id) == (("a", "b"), "models:/tiny/2", "run2")
    assert (second.model_id, second.created_ms, second.description) == ("m-2", 2000, "# card")
    assert [version.model_id for version in model.versions] == ["m-own", "m-4", "m-3", "m-2", None]
    assert second.number("metric.value") == 60.0 and second.number("nothing") is None
    with pytest.raises(Data2VecError, match=r"models:/tiny/9: tiny has the versions 1, 2, 3, 4, 5"):
        get_version(tracker, "tiny", 9)
    with pytest.raises(Data2VecError, match=r"aliases: a -> 2, b -> 2, c -> 3.*versions are 1, 2, 3, 4, 5"):
        get_alias(tracker, "tiny", "d")
    with pytest.raises(Data2VecError, match=r"no registered model 'tinny'.*tiny"):
        show(tracker, "tinny")
    registry.versions = []
    with pytest.raises(Data2VecError, match="has no versions"):
        get_version(tracker, "tiny", 1)


def test_the_same_weights_of_a_run_are_registered_once(registry: Registry, tracker: Any) -> None:
    registry.add(6, 50.0, **{RUN_TAG: "r", WEIGHTS_TAG: "abc"})
    found = _already_there(tracker, "tiny", "r", "abc")
    assert found is not None and found.version == 6
    assert _already_there(tracker, "tiny", "r", "other") is None
    assert _already_there(tracker, "tiny", "another", "abc") is None
    assert _already_there(tracker, "new", "r", "abc") is None


def test_which_checkpoint_of_a_run_is_meant() -> None:
    def chosen(update: int | str, there: list[int], best: int | None) -> int:
        return _choose(RunCheckpoint("r", update), there, best)

    assert [chosen(update, [2, 4, 6], 4) for update in (2, "best", "last")] == [2, 4, 6]
    for update, there, best, told in (
        (3, [2, 4], None, "no checkpoint of update 3; it has 2, 4"),
        ("best", [2, 4], None, "marked no best checkpoint; there are updates 2, 4"),
        ("last", [], None, "has no checkpoint"),
    ):
        with pytest.raises(Data2VecError, match=told):
            chosen(update, there, best)  # type: ignore[arg-type]
    assert [_stated(text) for text in (None, "", "null", "None", "none", "s3://x")] == [None] * 5 + ["s3://x"]


def test_a_run_is_found_by_id_or_name() -> None:
    asked: list[Any] = []
    runs = [SimpleNamespace(info=SimpleNamespace(run_id=name)) for name in ("one", "two")]

    def get_run(run_id: str) -> Any:
        if run_id == "e" * 32:
            raise ConnectionError("away")
        if run_id != "a" * 32:
            raise MissingError(run_id)
        return "by id"

    def search(experiments: list[str], query: str, max_results: int) -> list[Any]:
        asked.append((experiments, query))
        return {"small": runs[:1], "double": runs}.get(query.rpartition("= ")[2].strip("'"), [])

    experiments = [SimpleNamespace(experiment_id=n, name=f"exp{n}") for n in ("1", "2")]
    client = SimpleNamespace(get_run=get_run, search_runs=search, search_experiments=lambda: experiments)
    tracker: Any = SimpleNamespace(client=client)
    assert run_exactly_named(tracker, "a" * 32) == "by id" and asked == []
    assert run_exactly_named(tracker, "small") is runs[0]
    assert asked[0][0] == ["1", "2"]
    for wanted, told in (
        ("b" * 32, "no run has the id"),
        ("double", "several runs are called 'double'; give the id: one, two"),
        ("nobody", r"no run is called 'nobody' \(experiments looked in: exp1, exp2\)"),
        ("a'b", "neither the name nor the id"),
    ):  # fmt: skip
        with pytest.raises(Data2VecError, match=told):
            run_exactly_named(tracker, wanted)
    with pytest.raises(ConnectionError):
        run_exactly_named(tracker, "e" * 32)


def test_the_named_recipe_is_put_together_from_what_the_run_recorded() -> None:
    from d2v_platform.recipe.compose import compose

    plain = compose("tiny/text_pretraining", ["task.data=/x", "common.seed=9"]).recipe.to_dict()
    tags = {"d2v.recipe": "tiny/text_pretraining", "d2v.recipe_difference": '{"common.seed": [1, 9]}'}
    from d2v_platform.recipe.schema import Recipe

    found = _as_composed(Recipe.from_dict(plain), plain, tags)
    assert (found.base["common"]["seed"], found.recipe.common.seed) == (1, 9)
    assert (found.named_recipe, plain["common"]["seed"]) == ("tiny/text_pretraining", 9)
    assert _as_composed(found.recipe, plain, {}).base == plain


# ---- registering ----------------------------------------------------------------------------------------


def test_every_problem_of_a_registration_is_said_at_once(tmp_path: Path) -> None:
    tags = dict.fromkeys(LINEAGE_TAGS, "x")
    (tmp_path / "t.md").touch()
    right = NewVersion(folder=tmp_path, name="a" * 128, run_id="r1", tags=tags, card_markdown="# card")
    _check_request(replace(right, results_table=tmp_path / "t.md"))
    _check_request(replace(right, name="a.b-c_d"))
    with pytest.raises(ConfigError) as error:
        _check_request(
            replace(
                right, name="a" * 129, tags=tags | {"code.version": " "}, card_markdown=" ",
                results_table=tmp_path / "no.md",
            )
        )  # fmt: skip
    assert [problem.field for problem in error.value.problems] == [
        "tags['code.version']", "name", "card_markdown", "results_table",
    ]  # fmt: skip


def test_long_tags_and_cards_point_to_the_file() -> None:
    assert _fitting_tag("x" * 5000) == "x" * 5000
    assert _fitting_tag("x" * 5001) == "5001 characters, see lineage.json in the version"
    card = "line\n" * 1000
    assert fitting_card(card) == card
    short = fitting_card(card + "x")
    assert len(short) <= 5000 and short.startswith("line\nline\n")
    assert short.endswith("goes on in model_card.md of this version.)")
    assert short.count("line\n") > 950 and "line(" not in short and "lin\n" not in short


@pytest.mark.parametrize(
    ("stdout", "stderr", "told"),
    [
        ("noise\nreload-check: null\n", "", None),
        ('reload-check: "other outputs"\n', "", "other outputs"),
        ("", "Traceback\nImportError: x\n", "a clean process cannot load it: ImportError: x"),
        ("noise", "", "a clean process cannot load it: exit code 3"),
    ],
)
def test_what_a_clean_process_says(
    stdout: str, stderr: str, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def run(command: list[str], **more: Any) -> Any:
        seen.update(more, command=command)
        return SimpleNamespace(stdout=stdout, stderr=stderr, returncode=3)

    monkeypatch.setattr(reload_check.subprocess, "run", run)
    monkeypatch.setenv("PYTHONPATH", "/project")
    check = tmp_path / "check.json"
    missing = reload_problem(Path("/p"), check)
    assert missing is not None and "register it again" in missing and seen == {}
    check.touch()
    assert reload_problem(Path("/p"), check, 7) == told
    assert seen["command"][1] == "-I" and seen["command"][3:] == ["/p", str(check)]
    assert seen["timeout"] == 7 and Path(seen["cwd"]) != Path.cwd()
    assert "PYTHONPATH" not in seen["env"] and seen["env"]["CUDA_VISIBLE_DEVICES"] == ""
    assert seen["env"]["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"

    def slow(command: list[str], **more: Any) -> Any:
        raise subprocess.TimeoutExpired(command, more["timeout"])

    monkeypatch.setattr(reload_check.subprocess, "run", slow)
    assert reload_problem(Path("/p"), check, 7) == "a clean process did not load it within 7 s"


@pytest.mark.parametrize(
    ("output", "given", "expected", "told"),
    [
        ("scores", {"score_a": [0.5], "score_b": [0.25], "label": ["a"]}, [[0.5, 0.25]], None),
        ("scores", {"score": [0.5]}, [[0.5004]], None),  # below a thousandth of it
        ("scores", {"score": [0.5]}, [[0.502]], "largest difference 0.002"),
        ("scores", {"score": [0.0]}, [[5e-6]], None),  # next to nothing
        ("scores", {"score": [0.5]}, [[0.5, 0.5]], r"shape \(1, 1\), recorded were \(1, 2\)"),
        ("embedding", {"embedding": [[1.0, 2.0]]}, [[1.0, 2.0]], None),
        ("log_prob", {"log_prob": [-3.0], "text": ["x"]}, [[-3.0]], None),
        ("emissions", {"emissions": [[[1.0, 2.0], [3.0, 4.0]]]}, [[1.0, 2.0, 3.0, 4.0]], None),
    ],
)
def test_outputs_are_compared_with_what_was_recorded(
    output: str, given: Any, expected: Any, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc
    import pandas as pd

    asked: list[Any] = []

    def predict(inputs: Any, params: Any) -> Any:
        asked.append((inputs.to_dict("list"), params))
        return pd.DataFrame(given)

    monkeypatch.setattr(mlflow.pyfunc, "load_model", lambda place: SimpleNamespace(predict=predict))
    check = tmp_path / "check.json"
    plain = {"output": output, "expected": expected, "rtol": 1e-3, "atol": 1e-5}
    for inputs, column in (
        ({"texts": ["x"]}, {"text": ["x"]}), ({"audio": [[1.0]]}, {"audio": [[1.0]]}),
        ({"files": ["aGk="]}, {"file": [b"hi"]}),
    ):  # fmt: skip
        check.write_text(json.dumps(plain | inputs))
        found = reload_check._compare("/p", str(check))
        assert (found is None) == (told is None)
        if told is not None:
            assert found is not None
            assert told.replace("\\", "") in found
        assert asked.pop() == (column, {"output": output})
