"""What reading somebody else's file can end in."""

import pytest

from glem_graphgym.data.errors import DataError, reading_data


def test_a_damaged_file_is_named():
    said = r"papers.npz is damaged \(no such key\); fetch it again"
    with pytest.raises(DataError, match=said), reading_data("papers.npz is damaged", "fetch it again"):
        raise LookupError("no such\n key")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_lack_of_memory_says_nothing_about_the_file(error):
    with pytest.raises(type(error)) as raised, reading_data("papers.npz is damaged", "fetch it again"):
        raise error
    assert raised.value is error
