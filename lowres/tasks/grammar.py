"""Acceptability minimal pairs: sentences of which one member is good English and the other is not.

A template is two lines. In a line, ``[good|bad]`` marks the only place where the two members of a minimal pair
differ, and ``{...}`` is a slot for a word (``lexicon.fill``): N person, T thing, P place, F woman, M man,
V verb + thing, S verb + person, I intransitive verb, G verb + thing or substance, R irregular verb + object.
The second line is the mirror of the first, filled with the same words: what is wrong in the one is right in the
other. Both lines are always used together, so that in every phenomenon each word occurs equally often in
acceptable and in unacceptable sentences, and neither single words nor length give the label away.

The phenomena of ``out_of_domain`` are others than those of ``pool`` and ``in_domain``, and each of the three
sets has nouns, verbs, adjectives and names of its own (``lexicon``). The sentences are frozen on linguistic merit
(the tests pin checksums); a pretrained model's likelihoods only helped to find unnatural wording.
"""

from __future__ import annotations

import re

import pandas as pd

from lowres.tasks.lexicon import IN_DOMAIN, OUT_OF_DOMAIN, POOL, Draw, fill, sentence

SEED = 20240607
ACCEPTABLE, UNACCEPTABLE = "acceptable", "unacceptable"
PHENOMENA = {
    "subject_verb_agreement": (
        ("The {N1.sg} [is|are] {mood} today.",
         "The {N1.pl} [are|is] {mood} today."),
        ("The {N1.sg} often [{S.third}|{S.base}] the {N2.pl}.",
         "The {N1.pl} often [{S.base}|{S.third}] the {N2.pl}."),
        ("The {N1.sg} [has|have] {V.part} the {T1.sg} again.",
         "The {N1.pl} [have|has] {V.part} the {T1.sg} again."),
        ("The {N1.sg} [was|were] {I.ing} in the {P.sg} {when}.",
         "The {N1.pl} [were|was] {I.ing} in the {P.sg} {when}."),
    ),
    "attractor_agreement": (
        ("The {N1.sg} near the {N2.pl} [is|are] {mood} today.",
         "The {N1.pl} near the {N2.sg} [are|is] {mood} today."),
        ("The {T1.sg} beside the {T2.pl} [was|were] very {look}.",
         "The {T1.pl} beside the {T2.sg} [were|was] very {look}."),
        ("The {N1.sg} that the {N2.pl} {S.past} [has|have] {I.part} again.",
         "The {N1.pl} that the {N2.sg} {S.past} [have|has] {I.part} again."),
    ),
    "determiner_noun_agreement": (
        ("The {N1.sg} {V.past} this [{T1.sg}|{T1.pl}] {when}.",
         "The {N1.sg} {V.past} these [{T1.pl}|{T1.sg}] {when}."),
        ("That {mood} [{N1.sg}|{N1.pl}] will {V.base} the {T1.sg} soon.",
         "Those {mood} [{N1.pl}|{N1.sg}] will {V.base} the {T1.sg} soon."),
        ("{A} {V.past} every [{T1.sg}|{T1.pl}] in the {P.sg}.",
         "{A} {V.past} several [{T1.pl}|{T1.sg}] in the {P.sg}."),
    ),
    "reflexive_agreement": (
        ("{F1} has often {S.part} [herself|himself].",
         "{M1} has often {S.part} [himself|herself]."),
        ("The {male.sg} {S.past} [himself|themselves] {when}.",
         "The {male.pl} {S.past} [themselves|himself] {when}."),
        ("The {female.sg} {S.past} [herself|themselves] {when}.",
         "The {female.pl} {S.past} [themselves|herself] {when}."),
        ("{F1} {that_verb.past} that {M1} had {S.part} [himself|herself].",
         "{M1} {that_verb.past} that {F1} had {S.part} [herself|himself]."),
    ),
    "irregular_participle": (
        ("The {N1.sg} has [{R.part}|{R.past}] the {object} already.",
         "The {N1.sg} [{R.past}|{R.part}] the {object} yesterday."),
        ("The {object} was [{R.part}|{R.past}] by {A}.",
         "{A} [{R.past}|{R.part}] the {object} {when}."),
        ("The {N1.pl} had [{R.part}|{R.past}] the {object} before midnight.",
         "The {N1.pl} [{R.past}|{R.part}] the {object} after midnight."),
    ),
    "transitivity": (
        ("The {N1.sg} [{I.past}|{V.past}] {when}.",
         "The {N1.sg} [{V.past}|{I.past}] the {T1.sg} {when}."),
        ("The {N1.pl} have [{I.part}|{V.part}] again.",
         "The {N1.pl} have [{V.part}|{I.part}] the {T1.pl} again."),
        ("{A} [{I.past}|{S.past}] in the {P.sg}.",
         "{A} [{S.past}|{I.past}] the {N1.sg} in the {P.sg}."),
    ),
    "auxiliary_verb_form": (
        ("The {N1.sg} will [{V.base}|{V.ing}] the {T1.sg} soon.",
         "The {N1.sg} is [{V.ing}|{V.base}] the {T1.sg} now."),
        ("The {N1.pl} did not [{V.base}|{V.part}] the {T1.sg}.",
         "The {N1.pl} have not [{V.part}|{V.base}] the {T1.sg}."),
        ("{A} must [{S.base}|{S.part}] the {N1.sg} again.",
         "{A} had [{S.part}|{S.base}] the {N1.sg} again."),
    ),
    "adverb_placement": (
        ("The {N1.sg} [{manner} {V.past}|{V.past} {manner}] the {T1.sg} {when}.",
         "The {N2.pl} {V.past} [the {T1.pl} {manner}|{manner} the {T1.pl}]."),
        ("{A} has [never {V.part}|{V.part} never] the {T1.sg}.",
         "The {N1.pl} [always {S.base}|{S.base} always] the {N2.sg}."),
    ),
    "adjective_placement": (
        ("The {N1.sg} {V.past} the [{look} {T1.sg}|{T1.sg} {look}] {when}.",
         "{A} {V.past} [three {look}|{look} three] {T1.pl} {when}."),
        ("The [very {mood}|{mood} very] {N1.sg} {I.past} {when}.",
         "{A} was [too {mood}|{mood} too] to {V.base} the {T1.sg}."),
        ("Two [{look} {T1.pl}|{T1.pl} {look}] were in the {P.sg}.",
         "The {T1.sg} in the {P.sg} was [{look} enough|enough {look}] for {A}."),
    ),
    "quantifier_choice": (
        ("{A} {G.past} too [much|many] {mass}.",
         "{A} {G.past} too [many|much] {T1.pl}."),
        ("The {N1.pl} {G.past} a [little|few] {mass} {when}.",
         "The {N1.pl} {G.past} a [few|little] {T1.pl} {when}."),
        ("The {N1.sg} did not {G.base} [much|many] {mass} {when}.",
         "The {N1.sg} did not {G.base} [many|much] {T1.pl} {when}."),
    ),
    "pronoun_case": (
        ("Yesterday [{pro.subj}|{pro.obj}] {S.past} the {N1.sg}.",
         "Yesterday the {N1.sg} {S.past} [{pro.obj}|{pro.subj}]."),
        ("The {N1.pl} {that_verb.past} that [{pro.subj}|{pro.obj}] had {V.part} the {T1.sg}.",
         "The {N1.pl} {V.past} the {T1.sg} for [{pro.obj}|{pro.subj}]."),
        ("Soon [{pro.subj}|{pro.obj}] will {V.base} the {T1.sg} with {A}.",
         "Soon {A} will {V.base} the {T1.sg} with [{pro.obj}|{pro.subj}]."),
    ),
    "correlative_conjunction": (
        ("Both the {N1.sg} [and|or] the {N2.sg} {I.past} {when}.",
         "Either the {N1.sg} [or|and] the {N2.sg} {I.past} {when}."),
        ("{A} {V.past} both the {T1.sg} [and|nor] the {T2.sg}.",
         "{A} {V.past} neither the {T1.sg} [nor|and] the {T2.sg}."),
        ("Both {A} [and|nor] {B} {S.past} the {N1.sg}.",
         "Neither {A} [nor|and] {B} {S.past} the {N1.sg}."),
    ),
}
UNSEEN_PHENOMENA = {
    # "any" and "ever" need a negation that comes before them and takes scope over them.
    "negative_polarity": (
        ("[No {N1.sg} that the|The {N1.sg} that no] {N2.sg} {S.past} has ever {I.part}.",
         "[Nobody who {S2.past} the {N3.sg}|The {N3.sg} who {S2.past} nobody] has ever {I2.part}."),
        ("[The|Any] {N1.pl} did not {V.base} [any|the] {T1.pl} {when}.",
         "[The|Any] {N2.pl} have not {S.part} [any|the] {N3.pl} yet."),
    ),
    # After "what" and "who" the clause must lack its object; after "that" it must not.
    "filler_gap": (
        ("{F1} knows [what|that] the {N1.sg} {V.past} {when}.",
         "{F1} knows [that|what] the {N1.sg} {V.past} the {T1.sg} {when}."),
        ("{M1} recalled [who|that] the {N1.pl} had {S.part} {when}.",
         "{M1} recalled [that|who] the {N1.pl} had {S.part} {F1} {when}."),
    ),
    # Questions cannot reach into an adjunct clause or into a relative clause.
    "island": (
        ("What did the {N1.sg} {V.base} [before {V2.ing} the {T1.sg}|the {T1.sg} before {V2.ing}]?",
         "Who did the {N2.sg} {S.base} [after {S2.ing} {A}|{A} after {S2.ing}]?"),
        ("Who did the {N1.sg} who [{S.past} {A} {S2.base}|{S.past} {S2.base} {A}]?",
         "What did the {N2.pl} who [{V.past} the {T1.sg} {V2.base}|{V.past} {V2.base} the {T1.sg}]?"),
    ),
    # "every" and "most" cannot follow "there is"; an extraposed clause goes with "it", a noun phrase with "there".
    "existential_there": (
        ("There was [a|every] {T1.sg} in [every|a] {P.sg} {when}.",
         "There were [many|most] {T2.pl} in [most|many] {P.pl}."),
        ("[It|There] was clear that {A} had {V.part} the {T1.sg}.",
         "[There|It] were {low} {T2.pl} in the {P.sg}."),
    ),
    # The auxiliary of the elliptical clause must fit the first clause in form and polarity.
    "verb_phrase_ellipsis": (
        ("The {N1.sg} has {I.part}, and {A} [has|is] too.",
         "The {N1.sg} is {I.ing}, and {A} [is|has] too."),
        ("{A} can {V.base} the {T1.sg}, and [so|neither] can {B}.",
         "{A} cannot {V.base} the {T1.sg}, and [neither|so] can {B}."),
        ("{A} has {S.part} the {N1.pl}, and [so|neither] has {B}.",
         "{A} has never {S.part} the {N1.pl}, and [neither|so] has {B}."),
    ),
    "comparative": (
        ("The {N1.sg} is [{grade.er}|{grade.base}] than {A}.",
         "The {N1.sg} is as [{grade.base}|{grade.er}] as {A}."),
        ("{A} is {grade.er} [than|as] the {N1.pl}.",
         "{A} is as {grade.base} [as|than] the {N1.pl}."),
        ("{A} is the [{grade.est}|{grade.base}] of the three {N1.pl}.",
         "{A} is as [{grade.base}|{grade.est}] as the {N1.pl}."),
    ),
    "tag_question": (
        ("The {N1.pl} are {mood}, [aren't|don't] they?",
         "The {N1.pl} often {I.base}, [don't|aren't] they?"),
        ("{F1} has {V.part} the {T1.sg}, [hasn't|won't] she?",
         "{F1} will {V.base} the {T1.sg}, [won't|hasn't] she?"),
        ("{M1} {S.past} the {N1.sg}, [didn't|can't] he?",
         "{M1} can {S.base} the {N1.sg}, [can't|didn't] he?"),
    ),
    # Subject and auxiliary change places in a direct question but not in an embedded one.
    "question_inversion": (
        ("Why [is the {N1.sg}|the {N1.sg} is] {V.ing} the {T1.sg}?",
         "I wonder why [the {N1.sg} is|is the {N1.sg}] {V.ing} the {T1.sg}."),
        ("What [will the {N1.pl}|the {N1.pl} will] {V.base} next week?",
         "I wonder what [the {N1.pl} will|will the {N1.pl}] {V.base} next week."),
        ("Who [has {A}|{A} has] {S.part} this week?",
         "I wonder who [{A} has|has {A}] {S.part} this week."),
    ),
}
# Set -> its words, its phenomena, and how many pairs each phenomenon has.
_SETS = {
    "pool": (POOL, PHENOMENA, 100),
    "in_domain": (IN_DOMAIN, PHENOMENA, 20),
    "out_of_domain": (OUT_OF_DOMAIN, UNSEEN_PHENOMENA, 30),
}


def minimal_pair(line, words):
    """The acceptable and the unacceptable sentence of a template's line."""
    members = (re.sub(r"\[([^|\]]*)\|([^\]]*)\]", side, line) for side in (r"\1", r"\2"))
    return tuple(sentence(member.format_map(words)) for member in members)


def _pairs(part, templates, count, draw):
    """``count`` different minimal pairs, the templates in turn."""
    pairs, seen, turn = [], set(), 0
    while len(pairs) < count:
        words = fill(part, draw)
        mirrored = [minimal_pair(line, words) for line in templates[turn % len(templates)]]
        sentences = {text for pair in mirrored for text in pair}
        if sentences & seen:
            continue
        seen |= sentences
        pairs += mirrored
        turn += 1
    return pairs


def generate():
    """The three sets, keyed ``pool``, ``in_domain`` and ``out_of_domain``; the same rows at every call."""
    frames, pair_number = {}, 0
    for number, (name, (part, phenomena, count)) in enumerate(_SETS.items()):
        draw, rows = Draw(SEED + number), []
        for phenomenon, templates in phenomena.items():
            for good, bad in _pairs(part, templates, count, draw):
                rows.append((good, ACCEPTABLE, phenomenon, pair_number))
                rows.append((bad, UNACCEPTABLE, phenomenon, pair_number))
                pair_number += 1
        frames[name] = pd.DataFrame(draw.shuffled(rows), columns=["sentence", "label", "phenomenon", "pair"])
    return frames
