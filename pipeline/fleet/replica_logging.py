"""A replica's log as one JSON object a line; `replica_logging.json`, which vLLM is given, names `JsonLines`.

Runs inside the engine's processes, so it needs nothing but the standard library. Every line says which model, version
and generation it is about, and, inside a request, the request's id as the gateway gave it. No text of a client comes
into it: the engine is not told to log requests (see `pipeline.fleet.vllm`), and what an exception inside a request says
is left out, since it may quote the prompt.
"""

import json
import logging
import traceback
from datetime import UTC, datetime

from pipeline.fleet.replica_middleware import REQUEST_ID, identity, may_log_prompts


class JsonLines(logging.Formatter):
    """`ts` (RFC 3339, UTC), `level`, `logger`, `message`, `process`, who speaks, and what went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.who = identity()
        self.tells_all = may_log_prompts()

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": getattr(record, "vllm_process_name", record.processName),
            **self.who,
        }
        request_id = REQUEST_ID.get()
        if request_id:
            entry["request_id"] = request_id
        if record.exc_info and record.exc_info[0]:
            entry["error"] = record.exc_info[0].__name__
            entry["stack"] = "".join(traceback.format_tb(record.exc_info[2]))
            if self.tells_all or not request_id:
                entry["error_message"] = str(record.exc_info[1])
        return json.dumps(entry, ensure_ascii=False, default=str)
