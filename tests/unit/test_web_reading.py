"""How many bodies may be on their way at once."""

import pytest

from cloche.errors import Unavailable
from cloche.web.reading import Readers


def test_a_bound_for_all_and_one_for_each_address():
    readers = Readers(3, 2)
    readers.enter("a")
    readers.enter("a")
    with pytest.raises(Unavailable):
        readers.enter("a")
    readers.enter("b")
    with pytest.raises(Unavailable):
        readers.enter("c")
    readers.leave("a")
    readers.enter("c")
    for address in ("a", "b", "c"):
        readers.leave(address)
    readers.enter("a")
    readers.enter("a")
