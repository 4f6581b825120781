"""How often our processes look for garbage in cycles."""

import subprocess
import sys


def test_cycles_are_sought_rarely_and_found_all_the_same() -> None:
    program = (
        "import gc, weakref\nfrom assay.garbage import collect_rarely\n"
        "class Node: pass\n"
        "old = gc.get_threshold()\ncollect_rarely()\n"
        "node = Node()\nnode.itself, seen = node, weakref.ref(node)\ndel node\n"
        "kept = [[] for _ in range(200_000)]\n"
        "print(gc.get_threshold()[0] > 10 * old[0], gc.get_threshold()[1:] == old[1:], seen() is None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True True True\n"
