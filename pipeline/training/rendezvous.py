"""The place where nodes that come and go meet: a key-value store that belongs to none of them.

    python -m pipeline.training.rendezvous HOST PORT

torchrun's agents keep there who takes part in which attempt. A backend runs it beside the nodes, and starts it again if
it dies; the agents then die too, are started again, and meet anew. It ends by SIGTERM.
"""

import argparse
import signal
from datetime import timedelta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", help="the address to listen at")
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    from torch.distributed import TCPStore

    store = TCPStore(options.host, options.port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    print(f"nodes meet at {store.host}:{store.port}", flush=True)
    signal.sigwait(stop)


if __name__ == "__main__":
    main()
