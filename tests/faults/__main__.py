"""Seed faults and see that tests notice: ``python -m tests.faults [name ...]``, all of them or those named.

Each fault is seeded in a copy of its own of the package and tests, in which its test must fail; without the fault it
must pass. Prints a table, and ends with status 1 if a fault was not noticed within a minute.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.faults.faults import FAULTS
from tests.faults.seeding import SECONDS, TESTS_FAILED, run_test


def main(names: list[str]) -> int:
    if unknown := set(names) - set(FAULTS):
        print(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}", file=sys.stderr)
        return 2
    chosen = {name: FAULTS[name] for name in names or FAULTS}
    missed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sound, outcomes = {}, {}
        for name, fault in chosen.items():
            if fault.test not in sound:
                sound[fault.test] = pool.submit(run_test, fault.test, None)
            outcomes[name] = pool.submit(run_test, fault.test, fault)
        for name, fault in chosen.items():
            status, seconds = outcomes[name].result()
            passes = sound[fault.test].result()[0] == 0
            noticed = passes and status == TESTS_FAILED and seconds < SECONDS
            missed += not noticed
            why = "" if noticed else f" (status {status}{'' if passes else '; fails without the fault too'})"
            print(f"{'caught' if noticed else 'MISSED'} {seconds:5.1f} s  {name}: {fault.says}{why}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
