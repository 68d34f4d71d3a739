"""What notebooks use, each loaded when it is first asked for: `import lowres` takes no time and loads no torch.

    run = lowres.start("vanilla", globals())
    lowres.draw(run.task.pool, 16, seed=0)
"""

from importlib import import_module

PLACES = {
    "lowres.runs.notebook": ("start",),
    "lowres.tasks.load": ("load_task",),
    "lowres.tasks.shots": ("Streams", "draw"),
    "lowres.models.backbone": ("load_backbone",),
    "lowres.models.batches": ("encode",),
    "lowres.models.heads": ("Classifier", "Verbalizer", "word_head"),
    "lowres.methods.training": ("Outcome", "Training", "train"),
    "lowres.methods.evaluation": ("predict", "scored"),
    "lowres.runs.summary": ("compared", "side_by_side"),
    "lowres.methods.kept": ("load",),
}
_home = {name: module for module, names in PLACES.items() for name in names}
__all__ = [*_home, "show"]


def __getattr__(name: str):
    if name == "show":
        return import_module("lowres.methods.show")
    if name not in _home:
        raise AttributeError(f"module 'lowres' has no attribute {name!r}")
    return getattr(import_module(_home[name]), name)


def __dir__() -> list[str]:
    return __all__
