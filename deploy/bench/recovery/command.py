"""Recovery's command: what `coordctl bench recovery` does once its options are read."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.ctl.output import View, note
from deploy.bench.bed import Bed, connections_of
from deploy.bench.command import told
from deploy.bench.progress import Progress, duration
from deploy.bench.recovery.plan import RecoveryPlan
from deploy.bench.recovery.report import document, view
from deploy.bench.recovery.run import Recovery
from deploy.bench.servers import Target
from deploy.engines import Engine, available_engines
from deploy.interruption import interruptible, scratch


def measure(plan: RecoveryPlan, engine: Engine | None, targets: Sequence[Target]) -> View:
    """Set up, measure, put away; the report.

    Raises:
        CtlError: it could not be done.
    """
    with told():
        chosen = engine or (available_engines()[0] if not targets else None)
        where = ", ".join(target.name for target in targets) or f"{plan.servers} private {chosen} servers"
        seconds = plan.estimate_seconds()
        note(f"on {where}; this takes about {duration(seconds)}")
        with interruptible(), Progress(seconds) as say, scratch("xacoord-bench-") as directory:
            say("starting servers" if chosen else "taking the servers")
            beds = plan.beds_plan()
            bed = Bed.private(chosen, directory, beds) if chosen else Bed.given(targets, directory, beds)
            with bed:
                bed.prepare(connections_of(beds))
                say("starting agents")
                return view(document(plan, bed, Recovery(plan, bed).run(say)))
