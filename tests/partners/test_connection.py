"""What holds whatever is posted; how connections behave when it is, is in ``test_webhook``."""

import pytest

from partners.connection import require_safe_urllib3


@pytest.mark.parametrize("version", ["1.26.20", "2.0.7", "2.6.3"])
def test_an_old_urllib3_is_refused(version: str) -> None:
    with pytest.raises(ImportError):
        require_safe_urllib3(version)


@pytest.mark.parametrize("version", ["2.7.0", "2.8.0", "2.10.1", "3.0"])
def test_a_safe_urllib3_is_accepted(version: str) -> None:
    require_safe_urllib3(version)
