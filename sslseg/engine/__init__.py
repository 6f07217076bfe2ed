"""What our training adds to mmengine's Runner: exact resume, scores after validation, progress."""

from sslseg.engine.checkpoints import Checkpoints
from sslseg.engine.monitor import Monitor
from sslseg.engine.steps import MethodSteps, StepSeed, StopOnSignal, SyncBuffers
from sslseg.engine.validation import ScoreLoop

__all__ = ["Checkpoints", "MethodSteps", "Monitor", "ScoreLoop", "StepSeed", "StopOnSignal", "SyncBuffers"]
