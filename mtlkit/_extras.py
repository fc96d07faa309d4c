"""Optional packages that commands need, by the extra of mtlkit that installs them."""

from collections.abc import Collection
from importlib.util import find_spec

MODELS = {"timm": "timm", "huggingface_hub": "huggingface_hub", "safetensors": "safetensors"}
# extra -> its modules -> the packages that contain them
EXTRAS = {
    "models": MODELS,
    "train": {
        **MODELS,
        "lightning": "lightning",
        "torchmetrics": "torchmetrics",
        "torchvision": "torchvision",
        "sklearn": "scikit-learn",
        "scipy": "scipy",
        "imagehash": "imagehash",
        "pydantic": "pydantic",
        "pydicom": "pydicom",
        "PIL": "pillow",
        "openpyxl": "openpyxl",
        "yaml": "pyyaml",
        "rich": "rich",
        "matplotlib": "matplotlib",
        "jinja2": "jinja2",
    },
    "baselines": {
        "segmentation_models_pytorch": "segmentation-models-pytorch",
        "timm": "timm",
        "monai": "monai",
        "einops": "einops",
    },
    "loggers": {
        "tensorboard": "tensorboard",
        "mlflow": "mlflow-skinny",
        "sqlalchemy": "sqlalchemy",
        "alembic": "alembic",
        "wandb": "wandb",
    },
    "deploy": {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    "cluster": {"ray": "ray"},
    "dicom": {"highdicom": "highdicom", "pydicom": "pydicom"},
    "completion": {"shtab": "shtab"},
    "predict": {"onnxruntime": "onnxruntime", "PIL": "pillow", "pydicom": "pydicom"},
}
READING = (
    "scipy",
    "imagehash",
    "pydicom",
    "PIL",
    "openpyxl",
    "rich",
)  # the part of "train" that checking and drawing data sets needs
TIMING = ("rich", *MODELS)  # what `mtlkit bench` needs


def check_installed(what: str, extra: str = "train", only: Collection[str] = ()) -> None:
    """Raises an error that names all missing packages; imports nothing.

    Args:
        what: the function or command that needs them, for the message.
        extra: extra of mtlkit that installs them, or several separated by commas.
        only: the required modules; if empty, all modules of the extra.

    Raises:
        ImportError: a package is missing.

    Example:
        >>> from mtlkit._extras import check_installed
        >>> check_installed("this test", "models")
    """
    packages = {name: EXTRAS[name] for name in extra.split(",")}
    absent = {name: [module for module in only or packages[name] if find_spec(module) is None] for name in packages}
    missing = list(dict.fromkeys(packages[name][module] for name in packages for module in absent[name]))
    if missing:
        extra = ",".join(name for name in packages if absent[name])
        words = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
        verb = "is" if len(missing) == 1 else "are"
        raise ImportError(f"{what} needs {words}, which {verb} not installed: pip install 'mtlkit[{extra}]'")


def missing_words(module: str) -> str:
    """Returns a message about a module that an import did not find."""
    top = module.partition(".")[0]
    extra = next((name for name in ("train", "baselines", "deploy", "cluster") if top in EXTRAS[name]), None)
    package = EXTRAS[extra][top] if extra is not None else top
    words = f"needs {module if package == top else package}, which is not installed"
    return words if extra is None else f"{words}: pip install 'mtlkit[{extra}]'"
