"""What reading one record may take, whatever it holds: bytes and processor time, for all parts."""

import time
from dataclasses import dataclass, field

# Honest records take 0.1 to 3 s. A part that has begun is finished; the process that reads is ended
# a little later (`fairway.audit.records.fence`).
MOST_S = 6.0
MOST_LOGS = 50
LOG_BYTES = 1 << 26
# Longer lines of a log are told; a packed script in one line has 50,000 bytes at most.
MOST_LINE = 1 << 16
# Of one code; the rest of them is counted.
MOST_OF_A_CODE = 200


@dataclass
class Work:
    """The work that is left for one record; every part of an audit takes from it."""

    log_bytes: int = LOG_BYTES
    most_s: float = MOST_S
    began_s: float = field(default_factory=time.process_time)

    def take_log(self, size_bytes: int) -> int:
        """Return how many bytes of a log of this size may be read, and take them."""
        taken = min(size_bytes, self.log_bytes)
        self.log_bytes -= taken
        return taken

    @property
    def ended(self) -> bool:
        """Return whether the processor time is used up."""
        return time.process_time() - self.began_s > self.most_s
