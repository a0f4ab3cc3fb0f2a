"""Every error that Slipway raises on purpose, and the exit code that each becomes.

    SlipwayError
    ├── SpecError           64  the request itself is wrong: a recipe, a spec, a setting
    ├── DataError           65  the data is wrong
    │   ├── GateRefused     65  a gate looked at the result and said no
    │   ├── IntegrityError  65  bytes are not what their manifest says
    │   │   └── BundleRefused   65  a bundle that nobody trusted has signed, or that is not what was signed
    │   └── ReplicaFailed   65  a replica that does not serve what it should
    ├── TransientError      75  a fault that may pass: the store, MLflow, a full disk
    └── JobLost             75  the process that did the work died without saying why

64 and 65 fail at once, 75 is retried; any other exit code is a bug. The numbers are those of BSD's sysexits.h
(EX_USAGE, EX_DATAERR, EX_TEMPFAIL). A message says what, the offending value, what was expected, what to do.
"""

import errno
import socket

EXIT_DONE = 0
EXIT_BAD_SPEC = 64
EXIT_BAD_DATA = 65
EXIT_TRANSIENT = 75


class SlipwayError(Exception):
    """Base of all errors that carry an exit code."""

    exit_code = 1


class SpecError(SlipwayError):
    """A recipe, spec or setting that cannot be carried out."""

    exit_code = EXIT_BAD_SPEC


class DataError(SlipwayError):
    """Data that breaks a rule."""

    exit_code = EXIT_BAD_DATA


class GateRefused(DataError):
    """A gate that looked at a result and refused it."""


class IntegrityError(DataError):
    """An artifact whose bytes differ from its manifest."""


class BundleRefused(IntegrityError):
    """A bundle that no replica may load: unsigned, altered, signed by a stranger, or able to run code."""


class ReplicaFailed(DataError):
    """A replica that never became ready, keeps crashing, or answers as another version."""


class TransientError(SlipwayError):
    """A fault that may pass by itself: retry with back-off."""

    exit_code = EXIT_TRANSIENT


class JobLost(TransientError):
    """A job whose process died without leaving an exit code."""


TRANSIENT_ERRNOS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ENOLCK, errno.EBUSY),
        *(errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EADDRINUSE, errno.ENOTCONN),
    }
)
"""Full or failing disks, exhausted limits, broken networks. ENOENT, EACCES and the like are not among them: retrying
such a fault would only hide a bug or a wrong setting."""


def is_transient(error: OSError) -> bool:
    """Whether a fault of the operating system may pass by itself."""
    return isinstance(error, ConnectionError | TimeoutError | socket.gaierror) or error.errno in TRANSIENT_ERRNOS
