"""docs/protocol.md is drawn from the code, and names the failpoints that the core really reaches."""

from __future__ import annotations

from coordinator.core import effects, inputs
from coordinator.failpoint_driver import place
from docs import generate_diagrams as page
from tests.core.test_walk import Walk


def test_the_page_is_current() -> None:
    assert page.main(["--check"]) == 0, "run: python docs/generate_diagrams.py"
    text = page.PAGE.read_text()
    assert [name for name in page.PARTS if f"<!-- generated: {name} -->" not in text] == []


def test_an_outdated_page_is_noticed() -> None:
    text = page.PAGE.read_text()
    outdated = text.replace("| COMMIT_REQUESTED |", "| COMMIT_WANTED |")
    assert outdated != text
    assert page.draw(outdated) == text


def test_the_core_reaches_the_failpoints_that_the_page_names_and_no_others() -> None:
    reached: set[str] = set()
    for seed in range(60):
        walk = Walk(seed)
        world = walk.ring.world
        feed = world.feed

        def observe(event: inputs.Input, feed=feed) -> list[effects.Effect]:  # type: ignore[no-untyped-def]
            found: list[effects.Effect] = feed(event)
            reached.update(place(effect) for effect in found)
            reached.add(f"input_{place(event)}")  # type: ignore[arg-type]
            return found

        world.feed = observe  # type: ignore[method-assign]
        walk.go()
    assert reached == set(page.failpoints()) | set(page.input_places())
