"""Labels of policies."""

from __future__ import annotations

from kvevict.methods import METHODS, build, describe
from reporting.style import METHOD_STYLE, base, display, look, rank
from reporting.variants import label_variants


def labels(*policies):
    return label_variants([describe(policy) for policy in policies])


def test_a_method_in_one_form_has_its_plain_name():
    for method in METHODS:
        ratios = [{}] if method == "full" else [{"keep_ratio": r} for r in (0.05, 0.3, 0.5)]
        made = [build(method, min_eviction_seqlen=5, seed=s, **r) for s in (0, 1) for r in ratios]
        assert set(labels(*made)) == {method}


def test_forms_say_what_sets_them_apart_from_the_default():
    made = [
        build("laprox", keep_ratio=0.1),
        build("laprox", keep_ratio=0.2, project=False),
        build("laprox", keep_ratio=0.2, kernel=1, project=False),
        build("laprox", allocator="adakv"),
    ]
    plain, no_output, no_pooling, shared = labels(*made)
    assert plain == "laprox"
    assert no_output == "laprox (project False)"
    assert no_pooling == "laprox (kernel 1, project False)"
    assert shared == "laprox-adakv_allocator"


def test_shares_of_the_prompt_become_shares_of_what_is_kept():
    made = [
        build("nacl", keep_ratio=ratio, random_token_keep_ratio=random)
        for ratio in (0.1, 0.2)
        for random in (0.07, 0.0)
    ]
    one, other = labels(*made)[:2]
    assert labels(*made) == [one, other] * 2
    assert (one, other) == ("nacl", "nacl (random 0)")


def test_a_brief_label_gives_way_where_it_is_not_enough():
    made = [
        build("nacl", keep_ratio=0.2, random_token_keep_ratio=0.0, token_protect_ratio=protect)
        for protect in (0.01, 0.06)
    ]
    one, other, plain = labels(*made, build("nacl"))
    assert plain == "nacl"
    assert one == "nacl (protect 0.0769, proxy 0.923, random 0)"
    assert other == "nacl (protect 0.333, proxy 0.667, random 0)"


def test_every_method_looks_like_no_other():
    assert set(METHOD_STYLE) == set(METHODS)
    assert len(set(METHOD_STYLE.values())) == len(METHODS)


def test_looks_do_not_depend_on_company():
    everyone = look(list(METHODS))
    for method in METHODS:
        assert look([method, method])[method] == everyone[method]
    form = "nacl (random 0)"
    pair = look([form, "nacl"])
    assert pair["nacl"] == everyone["nacl"]
    assert pair[form]["color"] == pair["nacl"]["color"]
    assert pair[form]["linestyle"] != pair["nacl"]["linestyle"]
    assert (base(form), display(form)) == ("nacl", "NACL (random 0)")
    assert base("laprox-adakv_allocator") == "laprox"
    assert sorted(["unknown", form, "nacl", "full"], key=rank) == ["full", "nacl", form, "unknown"]
