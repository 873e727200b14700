"""What the model can have beside the recipes leaves it alone when off, and does what it says."""

from dataclasses import replace

import pytest
import torch
from features import FEATURES
from tiny import TINY, alive

from fairway.config.settings import BOS_ID
from fairway.model.gpt import GPT, build

IDS_BT = torch.randint(2, 260, (3, 12), generator=torch.Generator().manual_seed(0))
# At their initial values these change nothing.
NEUTRAL = [name for name in FEATURES if name not in ("windows", "two lanes")]


def copied(model: GPT, source: GPT) -> GPT:
    """Return the model with the parameters that both have from the source."""
    model.load_state_dict(source.state_dict(), strict=False)
    model.set_looping(source.looping)
    return model


@pytest.mark.parametrize("name", NEUTRAL)
def test_at_its_initial_value_a_feature_changes_nothing(name: str) -> None:
    plain = alive(TINY)
    found = copied(build(replace(TINY, **FEATURES[name]), 1).eval(), plain)
    torch.testing.assert_close(found.hidden(IDS_BT), plain.hidden(IDS_BT), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", FEATURES)
def test_away_from_it_a_feature_changes_the_model_and_learns(name: str) -> None:
    config = replace(TINY, **FEATURES[name])
    model = alive(config)
    loss = model(IDS_BT[:, :-1], IDS_BT[:, 1:])
    assert copied(alive(TINY), model)(IDS_BT[:, :-1], IDS_BT[:, 1:]) != loss
    torch.autograd.backward(loss)
    assert all(w.grad is not None and w.grad.any() for w in model.parameters())


def test_a_schedule_of_windows_leaves_layers_their_own() -> None:
    model = build(replace(TINY, window="5 0 3"), 1)
    for most, windows in ((0, [5, 0, 3]), (4, [4, 4, 3]), (9, [5, 9, 3]), (0, [5, 0, 3])):
        model.set_window(most)
        assert [block.attn.window for block in model.blocks][:3] == windows


@pytest.mark.parametrize("smear", [False, True])
def test_documents_that_do_not_see_one_another(smear: bool) -> None:
    model = alive(replace(TINY, smear=smear)).train()
    ids_BT = IDS_BT.clone()
    ids_BT[:, 5] = BOS_ID
    changed_BT = ids_BT.clone()
    changed_BT[:, :5] = changed_BT[:, :5].flip(1)
    for separate in (False, True):
        model.separate = separate
        alike = torch.allclose(model.hidden(ids_BT)[:, 5:], model.hidden(changed_BT)[:, 5:])
        assert alike == separate
    # A document alone stands at other positions, which attention does not tell apart.
    alone = model.hidden(ids_BT[:, 5:])
    torch.testing.assert_close(model.hidden(ids_BT)[:, 5:], alone, rtol=1e-4, atol=1e-5)
    # Whoever scores sees the whole context.
    model.eval()
    assert not torch.allclose(model.hidden(ids_BT)[:, 5:], alone)
