"""`coordctl wal`: looks at a log's directory without a coordinator, repairs it, and judges a disk.

`dump` and `verify` need no lock and change nothing, so they may be used while a coordinator runs.
`repair` needs the lock. Exit status: 0 sound, 1 refused or not confirmed, 65 no log there, 75 in
use, 78 corrupt or of a newer format (sysexits.h). Errors are the wal package's; coordinator.ctl.errors
makes one line and an exit code of them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from coordinator.ctl.output import clean
from coordinator.ctl.wal_bench import bench_command
from wal import Entry, Report, verify
from wal import repair as repair_log
from wal.verify import read_what_is_there

Describe = Callable[[Entry], dict[str, Any]]
DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
OUTPUT = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True
)


def make_group(describe: Describe) -> click.Group:
    """The group of commands.

    Arguments:
        describe: names a record: what `dump` shows of it besides lsn, epoch, sequence and flags. It gets all
            records, in log order.
    """
    group = click.Group("wal", help="Look at a write-ahead log, or repair it.")
    group.add_command(_dump_command(describe))
    group.add_command(verify_command)
    group.add_command(repair_command)
    group.add_command(bench_command)
    return group


def _dump_command(describe: Describe) -> click.Command:
    @click.command("dump")
    @DIRECTORY
    @OUTPUT
    @click.option(
        "--from-lsn", type=click.IntRange(min=0), default=0, help="Leave out records below this lsn."
    )
    @click.option("--limit", type=click.IntRange(min=1), help="Show at most so many records.")
    def dump(directory: Path, output: str, from_lsn: int, limit: int | None) -> None:
        """Show the records of the log in DIR: the newest checkpoint and what follows it.

        A line has the lsn, the transaction's gtrid (none for records of the log itself), epoch.sequence,
        flags, and what the record says.
        """
        entries, report = read_what_is_there(directory)
        rows = [row for row in (_row(entry, describe) for entry in entries) if row["lsn"] >= from_lsn][:limit]
        if output == "json":
            for row in rows:
                click.echo(json.dumps(row))
        else:
            for row in rows:
                key = f"{row.pop('epoch')}.{row.pop('sequence')}"
                lead = f"{row.pop('lsn'):>10}  {row.pop('gtrid', ''):<20}  {key}  flags {row.pop('flags')}"
                click.echo(clean("  ".join([lead, *(f"{name}={value}" for name, value in row.items())])))
        _end(report)

    return dump


def _row(entry: Entry, describe: Describe) -> dict[str, Any]:
    known = {"lsn": entry.lsn, "epoch": entry.epoch, "sequence": entry.sequence, "flags": entry.flags}
    return known | describe(entry)


@click.command("verify")
@DIRECTORY
@OUTPUT
def verify_command(directory: Path, output: str) -> None:
    """Check everything in the log in DIR, and say what was found."""
    report = verify(directory)
    _show(report, output)
    _end(report)


@click.command("repair")
@DIRECTORY
@OUTPUT
@click.option("--truncate-at", "lsn", type=click.IntRange(min=0), required=True, help="First lsn to give up.")
@click.option("--accept-loss", is_flag=True, help="Confirm that acknowledged records may be lost.")
def repair_command(directory: Path, output: str, lsn: int, accept_loss: bool) -> None:
    """Keep the records below an lsn and give up the rest; damaged files are kept as *.damaged."""
    report = repair_log(directory, lsn, accept_loss)
    _show(report, output)
    _end(report)


def _show(report: Report, output: str) -> None:
    if output == "json":
        fields = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
        fields["tail"] = dataclasses.asdict(report.tail) | {"state": report.tail.state.value}
        fields["segments"] = [dataclasses.asdict(segment) for segment in report.segments]
        fields["problem"] = str(report.problem) if report.problem else None
        click.echo(json.dumps({"verdict": report.verdict} | fields))
        return
    click.echo(
        f"{'segment':<25}{'epoch':>7}{'first lsn':>14}{'next lsn':>14}{'frames':>9}{'end':>12}{'size':>12}"
    )
    for segment in report.segments:
        click.echo(
            f"{segment.name:<25}{segment.epoch:>7}{segment.first_lsn:>14}{segment.next_lsn:>14}"
            f"{segment.frames:>9}{segment.end:>12}{segment.size:>12}"
        )
    click.echo(
        f"verdict {report.verdict}; identity {report.identity}; epoch {report.epoch}; "
        f"next lsn {report.next_lsn}; watermark {report.watermark_lsn}; {report.entries} records"
    )
    if report.tail.state.value == "torn":
        click.echo(
            f"an unfinished frame at {report.tail.file} offset {report.tail.offset} was never acknowledged"
        )
    if report.repaired:
        click.echo("the log was repaired and not started since: records may be missing")


def _end(report: Report) -> None:
    """What was there has been shown; a problem is the command's error (coordinator.ctl.errors)."""
    if report.problem is not None:
        raise report.problem
