"""Google Colab to test against: the control plane on a loopback port, and machines whose Jupyter server and kernel are
real.

    with Colab(folder, python=PYTHON) as colab:       # a thread of this process; PYTHON has jupyter_server
        colab.balance = 0
        colab.rules.add(Rule("POST /tun/m/assign", status=412))

What is there: `/token`, `/tun/m/assign`, `assignments`, `unassign` (both with their two steps), `ccu-info`, the prefix
of every answer, denials by `outcome`, machines that vanish. Without `python` machines exist in name only. What is not
there: keep-alive, Drive mounts, terminals, the pages themselves.
"""

from tests.emulators.colab.server import Colab
from tests.emulators.drive.faults import Rule

__all__ = ["Colab", "Rule"]
