"""What a worker raises of itself ends the run at once, once, with its own message and line."""

import os
import time
from pathlib import Path

import pytest

from easycore_ray import score
from easycore_ray.storage.errors import EasyCoreError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def test_a_model_that_raises_is_not_tried_again(settings, tmp_path):
    """The other worker waits in a collective: it is ended, too, long before that gives up."""
    raised = Path(os.environ["EASYCORE_TEST_PROCESSES"], "raised")
    raised.unlink(missing_ok=True)
    fields = settings(tmp_path / "run", model="tests.users_models:raising", num_workers=2, max_failures=3)
    with pytest.raises(EasyCoreError) as caught:
        score(**fields | {"width": None})
    ended = time.time()

    assert "score: TypeError: half of the images are upside down (users_models.py, line " in str(caught.value)
    assert str(caught.value).endswith(", in forward)")
    assert raised.read_text() == "2\n", "tried once"
    # The other rank is in the middle of a collective, which gives up after 300 s; Ray Train ends it.
    print(f"{ended - raised.stat().st_mtime:.1f} s from the error to its message")
    assert ended - raised.stat().st_mtime < 15, "not within seconds"
