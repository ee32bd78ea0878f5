import pandas as pd
import pytest

from robustcli.finetuning.record import SWEEP, RuleRecord
from robustcli.reports.document import Document, Paragraph
from robustcli.reports.markdown_page import to_markdown
from robustcli.reports.rules import is_within, rule_label, rule_scope, rule_words, statistic_name

RULE = RuleRecord(
    threshold=1e-6, quantile=None, pattern=None, kind="mean_abs", relative=False, scope="mamba"
)


def changed(**changes: object) -> RuleRecord:
    return RULE.model_copy(update={"threshold": None, **changes})


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (RULE, "tensors of state-space blocks whose mean of \\|g\\| over a tensor's elements is "
               "below 1e-06"),
        (changed(quantile=0.3, scope="all", kind="rms", relative=True),
         "the 30 % of the tensors of the whole network with the smallest root mean square of g "
         "over a tensor's elements, relative to the weight's rms"),
        (changed(pattern="encoder.*"), "tensors called `encoder.*`"),
    ],
)  # fmt: skip
def test_a_rule_in_words(rule: RuleRecord, words: str) -> None:
    page = to_markdown(Document("", (Paragraph(rule_words(rule)),)))
    assert page.strip() == words


def test_every_statistic_has_a_name_of_its_own() -> None:
    kinds = ("mean_abs", "rms", "max_abs", "abs_mean")
    assert len({statistic_name(changed(kind=kind)) for kind in kinds}) == 4


@pytest.mark.parametrize(
    ("rule", "mamba", "expected"),
    [
        (RULE, [True, False], [True, False]),
        (RULE, [False, False], [True, True]),
        (changed(threshold=1.0, scope="all"), [True, False], [True, True]),
        (changed(pattern="x"), [True, False], [True, True]),
    ],
)
def test_what_a_rule_chooses_from(
    rule: RuleRecord, mamba: list[bool], expected: list[bool]
) -> None:
    assert is_within(rule, pd.Series(mamba)).tolist() == expected


@pytest.mark.parametrize(
    ("line", "label", "scope"),
    [
        (("mamba", 1e-6, None, None, 0.0), "nothing frozen", "state-space blocks"),
        (("mamba", 1e-6, None, None, 0.1), "below 1e-06", "state-space blocks"),
        (("all", None, 0.3, None, 0.1), "smallest 0.3", "all tensors"),
        (("all", None, None, "encoder.*", 0.1), "encoder.*", "by name"),
    ],
)
def test_a_line_of_a_sweep_has_a_short_name(
    line: tuple[object, ...], label: str, scope: str
) -> None:
    row = pd.DataFrame([line], columns=list(SWEEP[:5])).iloc[0]
    assert (rule_label(row), rule_scope(row)) == (label, scope)
