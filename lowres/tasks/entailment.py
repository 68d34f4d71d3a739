"""Two-label inference: does the premise entail the hypothesis?

``pool`` and ``in_domain`` are made of crossings (``_cross``): two premises and two hypotheses of the same
material, of which each premise entails its own hypothesis and not the other's. Every premise and every hypothesis
thus occurs once with either label, so that neither of them alone, nor any word in them, gives the label away.
(In ``hypernymy`` this holds of the words but not of the whole premises: "poodle" entails "dog", "animal" does not,
and under negation it is the other way round.)
How many words of the hypothesis the premise has is a useful cue here, but not a perfect one.

In ``out_of_domain`` every hypothesis is made of words of its premise, which misleads whoever relies on overlap.
As in HANS (McCoy, Pavlick & Linzen, 2019) there are three kinds: the premise contains the words of the hypothesis
but not as a stretch (``lexical_overlap``), as a stretch (``subsequence``), or as a stretch that is a clause of its
own (``constituent``). Templates and words are ours. Every hypothesis occurs with an entailing and another premise.

"Not entailed" includes both what is contradicted and what is left open. Each set has nouns, verbs, adjectives and
names of its own (``lexicon``); the slots are those of ``grammar``, with A to D for any names.
"""

from __future__ import annotations

import pandas as pd

from lowres.tasks.lexicon import IN_DOMAIN, OUT_OF_DOMAIN, POOL, Draw, fill, sentence

SEED = 20240707
ENTAILMENT, NOT_ENTAILMENT = "entailment", "not_entailment"


def _cross(premise, hypothesis, other_premise, other_hypothesis):
    """Both hypotheses, each as (hypothesis, premise that entails it, premise that does not)."""
    return (hypothesis, premise, other_premise), (other_hypothesis, other_premise, premise)


CONSTRUCTIONS = {
    "hypernymy": (
        (("{A} has {see.part} {kind.mid.a}.", "{A} has {see.part} {kind.low.a}.", "{A} has {see.part} {kind.high.a}."),
         ("{A} has never {see.part} {kind.mid.a}.", "{A} has never {see.part} {kind.high.a}.",
          "{A} has never {see.part} {kind.low.a}.")),
        (("The {N1.sg} {see.past} {kind.mid.a} {when}.", "The {N1.sg} {see.past} {kind.low.a} {when}.",
          "The {N1.sg} {see.past} {kind.high.a} {when}."),
         ("No {N1.sg} {see.past} {kind.mid.a} {when}.", "No {N1.sg} {see.past} {kind.high.a} {when}.",
          "No {N1.sg} {see.past} {kind.low.a} {when}.")),
    ),
    "conjunction_elimination": (
        _cross("{A} {V.past} the {T1.sg} and the {T2.sg}.", "{A} {V.past} the {T2.sg}.",
               "{A} {V.past} the {T1.sg} and the {T3.sg}.", "{A} {V.past} the {T3.sg}."),
        _cross("{A} and {B} {I.past} {when}.", "{B} {I.past} {when}.",
               "{A} and {C} {I.past} {when}.", "{C} {I.past} {when}."),
        _cross("The {N1.sg} {I.past} and {I2.past} {when}.", "The {N1.sg} {I2.past} {when}.",
               "The {N1.sg} {I.past} and {I3.past} {when}.", "The {N1.sg} {I3.past} {when}."),
    ),
    "passive": (
        _cross("The {N1.sg} {V.past} the {T1.sg}.", "The {T1.sg} was {V.part} by the {N1.sg}.",
               "The {N2.sg} {V.past} the {T1.sg}.", "The {T1.sg} was {V.part} by the {N2.sg}."),
        _cross("{A} {S.past} the {N1.sg} {when}.", "The {N1.sg} was {S.part} by {A} {when}.",
               "{A} {S.past} the {N2.sg} {when}.", "The {N2.sg} was {S.part} by {A} {when}."),
        _cross("The {T1.pl} were {V.part} by {A}.", "{A} {V.past} the {T1.pl}.",
               "The {T2.pl} were {V.part} by {A}.", "{A} {V.past} the {T2.pl}."),
    ),
    "quantifier": (
        _cross("All of the {N1.pl} {I.past} {when}.", "Some of the {N1.pl} {I.past} {when}.",
               "None of the {N1.pl} {I.past} {when}.", "Not all of the {N1.pl} {I.past} {when}."),
        _cross("Both {N1.pl} {V.past} the {T1.sg}.", "At least one {N1.sg} {V.past} the {T1.sg}.",
               "Neither {N1.sg} {V.past} the {T1.sg}.", "At least one {N1.sg} did not {V.base} the {T1.sg}."),
        _cross("{A} {S.past} all of the {N1.pl}.", "{A} {S.past} at least one of the {N1.pl}.",
               "{A} {S.past} none of the {N1.pl}.", "At least one of the {N1.pl} was not {S.part} by {A}."),
    ),
    "negation": (
        _cross("It is {true} that {A} {V.past} the {T1.sg}.", "{A} {V.past} the {T1.sg}.",
               "It is not {true} that {A} {V.past} the {T1.sg}.", "{A} did not {V.base} the {T1.sg}."),
        _cross("The {N1.sg} is {state.first}.", "The {N1.sg} is not {state.second}.",
               "The {N1.sg} is not {state.first}.", "The {N1.sg} is {state.second}."),
    ),
    "number": (
        _cross("{A} {G.past} {high} {T1.pl}.", "{A} {G.past} more than {middle} {T1.pl}.",
               "{A} {G.past} {low} {T1.pl}.", "{A} {G.past} fewer than {middle} {T1.pl}."),
        _cross("{A} {G.past} {high} {T1.pl} and {B} {G.past} {low}.", "{A} {G.past} more {T1.pl} than {B}.",
               "{A} {G.past} {low} {T1.pl} and {B} {G.past} {high}.", "{B} {G.past} more {T1.pl} than {A}."),
        _cross("{A} {G.past} {low} {T1.pl} and {middle} {T2.pl}.", "{A} {G.past} {middle} {T2.pl}.",
               "{A} {G.past} {low} {T1.pl} and {middle} {T3.pl}.", "{A} {G.past} {middle} {T3.pl}."),
    ),
    "temporal_order": (
        _cross("{A} {I.past} before {B} {I2.past}.", "{B} {I2.past} after {A} {I.past}.",
               "{A} {I.past} after {B} {I2.past}.", "{B} {I2.past} before {A} {I.past}."),
        _cross("{A} {I.past} first, and {B} {I.past} second.", "{A} {I.past} before {B} did.",
               "{B} {I.past} first, and {A} {I.past} second.", "{B} {I.past} before {A} did."),
        _cross("When {A} {I.past}, {B} had already {I2.part}.", "{B} {I2.past} before {A} {I.past}.",
               "When {B} {I2.past}, {A} had already {I.part}.", "{A} {I.past} before {B} {I2.past}."),
        _cross("Before {A} {I.past}, {C} {I2.past}.", "{C} {I2.past} before {A} {I.past}.",
               "Before {B} {I.past}, {C} {I2.past}.", "{C} {I2.past} before {B} {I.past}."),
    ),
    "modifier_dropping": (
        _cross("{A} {V.past} {look.a} {T1.sg}.", "{A} {V.past} {T1.a}.",
               "{A} {V.past} {look.a} {T2.sg}.", "{A} {V.past} {T2.a}."),
        _cross("The {mood} {N1.sg} {I.past} {when}.", "The {N1.sg} {I.past} {when}.",
               "The {mood} {N2.sg} {I.past} {when}.", "The {N2.sg} {I.past} {when}."),
        _cross("{A} {manner} {V.past} the {T1.sg}.", "{A} {V.past} the {T1.sg}.",
               "{A} {manner} {V2.past} the {T1.sg}.", "{A} {V2.past} the {T1.sg}."),
    ),
    "converse": (
        _cross("{A} {transfer.first} the {T1.sg} to {B}.", "{B} {transfer.second} the {T1.sg} from {A}.",
               "{B} {transfer.first} the {T1.sg} to {A}.", "{A} {transfer.second} the {T1.sg} from {B}."),
        _cross("{A} is {degree.first} than {B}.", "{B} is {degree.second} than {A}.",
               "{B} is {degree.first} than {A}.", "{A} is {degree.second} than {B}."),
        _cross("The {T1.sg} is above the {T2.sg}.", "The {T2.sg} is below the {T1.sg}.",
               "The {T2.sg} is above the {T1.sg}.", "The {T1.sg} is below the {T2.sg}."),
    ),
    "transitive_order": (
        _cross("{A} is {degree.first} than {B}, and {B} is {degree.first} than {C}.",
               "{A} is {degree.first} than {C}.",
               "{D} is {degree.first} than {B}, and {B} is {degree.first} than {C}.",
               "{D} is {degree.first} than {C}."),
        _cross("{A} {I.past} before {B} did, and {B} {I.past} before {C} did.", "{A} {I.past} before {C} did.",
               "{A} {I.past} before {B} did, and {B} {I.past} before {D} did.", "{A} {I.past} before {D} did."),
        _cross("The {T1.sg} is above the {T2.sg}, and the {T2.sg} is above the {T3.sg}.",
               "The {T1.sg} is above the {T3.sg}.",
               "The {T3.sg} is above the {T2.sg}, and the {T2.sg} is above the {T1.sg}.",
               "The {T3.sg} is above the {T1.sg}."),
    ),
    "implicative": (
        _cross("{A} {implicative.first} to {V.base} the {T1.sg}.", "{A} {V.past} the {T1.sg}.",
               "{A} {implicative.second} to {V.base} the {T1.sg}.", "{A} did not {V.base} the {T1.sg}."),
        _cross("The {N1.sg} {implicative.first} to {S.base} {A}.", "The {N1.sg} {S.past} {A}.",
               "The {N1.sg} {implicative.second} to {S.base} {A}.", "The {N1.sg} did not {S.base} {A}."),
    ),
    "location": (
        _cross("{A} {stay.third} in {U.city}.", "{A} {stay.third} in {U.country}.",
               "{A} {stay.third} in {U2.city}.", "{A} {stay.third} in {U2.country}."),
        _cross("The {N1.sg} {stay.past} in {U.city}.", "The {N1.sg} {stay.past} in {U.country}.",
               "The {N1.sg} {stay.past} in {U2.city}.", "The {N1.sg} {stay.past} in {U2.country}."),
    ),
}
# Each template: the hypothesis, a premise that entails it, a premise that does not.
HEURISTICS = {
    "lexical_overlap": (
        ("The {N1.sg} {S.past} the {N2.sg}.",
         "The {N2.sg} was {S.part} by the {N1.sg}.",
         "The {N1.sg} was {S.part} by the {N2.sg}."),
        ("The {N1.sg} {S.past} the {N2.sg}.",
         "The {N1.sg} who {S.past} the {N2.sg} {I.past} {when}.",
         "The {N1.sg} who the {N2.sg} {S.past} {I.past} {when}."),
        ("The {N1.sg} {I.past} {when}.",
         "The {N1.sg} near the {N2.sg} {I.past} {when}.",
         "The {N2.sg} {I.past} near the {N1.sg} {when}."),
        ("The {N1.sg} {S.past} the {N3.sg}.",
         "The {N1.sg} {S.past} the {N2.sg} and the {N3.sg}.",
         "The {N2.sg} and the {N3.sg} {S.past} the {N1.sg}."),
    ),
    "subsequence": (
        ("The {N2.pl} {I.past} {when}.",
         "The {N1.sg} and the {N2.pl} {I.past} {when}.",
         "The {N1.sg} near the {N2.pl} {I.past} {when}."),
        ("The {N2.sg} {I.past} {when}.",
         "Both the {N1.sg} and the {N2.sg} {I.past} {when}.",
         "The {N1.sg} who {S.past} the {N2.sg} {I.past} {when}."),
        ("The {N1.sg} {believe.past} the {claim}.",
         "The {N1.sg} {believe.past} the {claim} about the {N2.sg}.",
         "The {N1.sg} {believe.past} the {claim} was {false}."),
        ("The {N1.pl} {V.past} the {T1.sg}.",
         "Even the {N1.pl} {V.past} the {T1.sg}.",
         "Not even the {N1.pl} {V.past} the {T1.sg}."),
    ),
    "constituent": (
        ("The {N1.sg} {I.past} {when}.",
         "Because the {N1.sg} {I.past} {when}, the {N2.sg} {I2.past}.",
         "If the {N1.sg} {I.past} {when}, the {N2.sg} {I2.past}."),
        ("The {N1.sg} {I.past} {when}.",
         "The {N1.sg} {I.past} {when}, and the {N2.sg} {I2.past}.",
         "The {N1.sg} {I.past} {when}, or the {N2.sg} {I2.past}."),
        ("The {N1.sg} {V.past} the {T1.sg}.",
         "The {N2.sg} {factive} that the {N1.sg} {V.past} the {T1.sg}.",
         "The {N2.sg} {nonfactive} that the {N1.sg} {V.past} the {T1.sg}."),
        ("The {N1.pl} {V.past} the {T1.sg}.",
         "{affirming}, the {N1.pl} {V.past} the {T1.sg}.",
         "{hedging} the {N1.pl} {V.past} the {T1.sg}."),
    ),
}
# Set -> its words, its templates, and how many pairs each construction or heuristic has.
_SETS = {
    "pool": (POOL, CONSTRUCTIONS, 100),
    "in_domain": (IN_DOMAIN, CONSTRUCTIONS, 20),
    "out_of_domain": (OUT_OF_DOMAIN, {name: tuple((pair,) for pair in pairs) for name, pairs in HEURISTICS.items()},
                      80),
}


def _pairs(part, templates, count, draw, seen):
    """``count`` triples (hypothesis, entailing premise, other premise), the templates in turn.

    ``seen`` collects premises and hypotheses of the set, so that none occurs in two crossings.
    """
    pairs, turn = [], 0
    while len(pairs) < count:
        words = fill(part, draw)
        group = [tuple(sentence(text.format_map(words)) for text in pair) for pair in templates[turn % len(templates)]]
        items = {(premise, hypothesis) for hypothesis, *premises in group for premise in premises}
        if items & seen:
            continue
        seen |= items
        pairs += group
        turn += 1
    return pairs


def generate():
    """The three sets, keyed ``pool``, ``in_domain`` and ``out_of_domain``; the same rows at every call."""
    frames, pair_number = {}, 0
    for number, (name, (part, constructions, count)) in enumerate(_SETS.items()):
        draw, rows, seen = Draw(SEED + number), [], set()
        for construction, templates in constructions.items():
            for hypothesis, entailing, other in _pairs(part, templates, count, draw, seen):
                rows.append((entailing, hypothesis, ENTAILMENT, construction, pair_number))
                rows.append((other, hypothesis, NOT_ENTAILMENT, construction, pair_number))
                pair_number += 1
        frames[name] = pd.DataFrame(draw.shuffled(rows),
                                    columns=["premise", "hypothesis", "label", "heuristic", "pair"])
    return frames
