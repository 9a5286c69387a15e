"""What hypothesis makes of a file: the same with a few bytes changed, left out or put in."""

from hypothesis import strategies as st

CHANGE = st.tuples(st.integers(0, 2**20), st.sampled_from([0, 1, 1, 2, 4, 64, 2**20]), st.binary(max_size=4))


@st.composite
def damaged(draw, *files):
    """Draws one of the files, as bytes, with up to four changes: bytes from a place on give way to others."""
    data = bytearray(draw(st.sampled_from(files)))
    for place, taken, put in draw(st.lists(CHANGE, max_size=4)):
        place %= len(data) + 1
        data[place : place + taken] = put
    return bytes(data)
