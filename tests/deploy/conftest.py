import pytest

from mtlkit import deploy


@pytest.fixture(autouse=True, scope="session")
def _library() -> None:
    """Skips the tests if mtlkit was installed without its native part."""
    try:
        deploy.library_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))
