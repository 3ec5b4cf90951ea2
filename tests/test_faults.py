"""A few of the cases of tests/faults.py; its docstring says how to run all of them."""

from faults import try_all


def test_faults_end_in_a_right_result_or_one_clear_error():
    found = try_all(cases=26, sizes=3, seed=0)
    assert sum(found.values()) >= 26
    assert not [outcome for _, outcome in found if outcome.isupper()]
