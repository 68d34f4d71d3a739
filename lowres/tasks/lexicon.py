"""The words of the two embedded tasks, in three parts that share no open-class word.

Each data set draws from one part only: ``POOL``, ``IN_DOMAIN`` or ``OUT_OF_DOMAIN``. Nouns, names, verbs,
adjectives and manner adverbs are open-class and belong to exactly one part, in all their forms. Determiners,
pronouns, auxiliaries, prepositions, conjunctions, numerals, negation, adverbs of time, degree and frequency and
the calendar words of time phrases ("last night") are closed-class, listed in ``FUNCTION_WORDS``, and shared.
The words were chosen so that every verb of a group goes sensibly with every noun it is combined with.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections import namedtuple
from dataclasses import dataclass


class Word(str):
    """An uninflected word; ``.a`` puts the indefinite article in front."""

    @property
    def a(self):
        # All vowel-initial words below begin with a vowel sound, so that spelling decides.
        return ("an " if self[0].lower() in "aeiou" else "a ") + self


@dataclass(frozen=True)
class Noun:
    """A count noun; ``.a`` is the singular with the indefinite article."""

    sg: str
    pl: str

    @property
    def a(self):
        return Word(self.sg).a


@dataclass(frozen=True)
class Verb:
    """The five forms of a verb; ``obj`` names fitting objects where not every object of the part fits."""

    base: str
    third: str
    past: str
    part: str
    ing: str
    obj: tuple = ()


Pronoun = namedtuple("Pronoun", "subj obj")
Gradable = namedtuple("Gradable", "base er est")
Contrast = namedtuple("Contrast", "first second")  # the second undoes or reverses the first (older/younger)
Chain = namedtuple("Chain", "low mid high")        # each a kind of the next (poodle, dog, animal)
City = namedtuple("City", "city country")


def _items(kind, text):
    """``"lamp lamps, chair chairs"`` as a tuple of ``kind``, one for each comma-separated entry."""
    return tuple(kind(*map(Word, entry.split())) for entry in text.split(","))


def _words(text):
    return tuple(map(Word, text.split()))


def _verbs(text):
    """One verb a line (or comma): base, third person, past, participle, gerund, ``:``, objects if it has its own."""
    entries = [entry.partition(":") for entry in re.split(r"[,\n]", text.strip())]
    return tuple(Verb(*forms.split(), obj=_words(objects)) for forms, _, objects in entries)


@dataclass(frozen=True)
class Part:
    """The open-class words of one data set, grouped by what they can be combined with."""

    women: tuple
    men: tuple
    people: tuple            # person nouns that say nothing about gender
    things: tuple            # what a person can carry, buy or mend
    places: tuple            # what a person can be in
    handling: tuple          # verbs that need a thing as object
    social: tuple            # verbs that need a person as object
    intransitive: tuple      # verbs that cannot take an object
    moods: tuple             # adjectives of persons
    looks: tuple             # adjectives of things
    males: tuple = ()
    females: tuple = ()
    mass: tuple = ()         # nouns without a plural
    getting: tuple = ()      # verbs for both things and substances
    irregular: tuple = ()    # past and participle differ; each verb with its own objects
    manner: tuple = ()       # manner adverbs
    attitude: tuple = ()     # verbs with a that-clause
    seeing: tuple = ()       # verbs for the nouns of the chains
    chains: tuple = ()
    staying: tuple = ()      # verbs with a place
    cities: tuple = ()
    degrees: tuple = ()      # opposite comparatives
    transfers: tuple = ()    # give to / take from
    implicative: tuple = ()  # with infinitive: it happened / it did not happen
    complements: tuple = ()  # of persons: exactly one of the two holds
    truth: tuple = ()        # "It is ... that"
    gradable: tuple = ()
    believing: tuple = ()    # verbs with a noun or with a clause without "that"
    claims: tuple = ()       # nouns for what is said
    falsehood: tuple = ()    # adjectives that deny a claim
    factive: tuple = ()      # verbs that presuppose their that-clause
    nonfactive: tuple = ()   # verbs that leave open whether their that-clause holds
    affirming: tuple = ()    # sentence adverbs that leave a statement true
    hedging: tuple = ()      # sentence adverbs that leave open whether a statement is true
    other: tuple = ()        # open-class words spelled out in a template of this part's tasks

    def forms(self):
        """All word forms of the part, in lower case."""
        text = repr(dataclasses.astuple(self)).lower()
        return frozenset(re.findall(r"'([a-z]+)'", text))


POOL = Part(
    women=_words("Anna Maria Julia Emma Laura Sarah Nancy Helen Alice Karen"),
    men=_words("Peter David Thomas Robert Daniel Simon Kevin George Martin Paul"),
    people=_items(Noun, "teacher teachers, doctor doctors, farmer farmers, lawyer lawyers, student students, "
                        "artist artists, soldier soldiers, neighbor neighbors, scientist scientists, "
                        "plumber plumbers, dentist dentists, senator senators, tourist tourists, "
                        "engineer engineers, pianist pianists, reporter reporters"),
    things=_items(Noun, "lamp lamps, chair chairs, clock clocks, radio radios, basket baskets, camera cameras, "
                        "guitar guitars, table tables, mirror mirrors, suitcase suitcases, umbrella umbrellas"),
    places=_items(Noun, "kitchen kitchens, library libraries, school schools, market markets, hotel hotels, "
                        "station stations"),
    handling=_verbs("repair repairs repaired repaired repairing, carry carries carried carried carrying, "
                    "inspect inspects inspected inspected inspecting, destroy destroys destroyed destroyed "
                    "destroying, purchase purchases purchased purchased purchasing"),
    social=_verbs("praise praises praised praised praising, blame blames blamed blamed blaming, "
                  "mock mocks mocked mocked mocking, defend defends defended defended defending, "
                  "criticize criticizes criticized criticized criticizing"),
    intransitive=_verbs("sneeze sneezes sneezed sneezed sneezing, yawn yawns yawned yawned yawning, "
                        "cry cries cried cried crying, laugh laughs laughed laughed laughing, "
                        "sleep sleeps slept slept sleeping, cough coughs coughed coughed coughing, "
                        "faint faints fainted fainted fainting"),
    moods=_words("tired happy angry nervous hungry calm"),
    looks=_words("small old heavy expensive dusty"),
    males=_items(Noun, "boy boys, king kings, uncle uncles"),
    females=_items(Noun, "girl girls, queen queens, aunt aunts"),
    mass=_words("sugar water rice flour milk sand"),
    getting=_verbs("buy buys bought bought buying, order orders ordered ordered ordering, "
                   "store stores stored stored storing"),
    irregular=_verbs("""write writes wrote written writing: letter poem essay
                        eat eats ate eaten eating: apple sandwich pizza
                        break breaks broke broken breaking: window plate
                        draw draws drew drawn drawing: picture map
                        throw throws threw thrown throwing: ball stone
                        steal steals stole stolen stealing: jewel purse
                        drive drives drove driven driving: truck tractor
                        wear wears wore worn wearing: coat uniform"""),
    manner=_words("carefully quickly secretly"),
    attitude=_verbs("say says said said saying, think thinks thought thought thinking"),
    seeing=_verbs("see sees saw seen seeing, photograph photographs photographed photographed photographing, "
                  "touch touches touched touched touching"),
    chains=_items(Chain, "poodle dog animal, spaniel dog animal, salmon fish animal, pony horse animal, "
                         "tulip flower plant, rose flower plant, oak tree plant"),
    staying=_verbs("live lives lived lived living, work works worked worked working"),
    cities=_items(City, "Paris France, Berlin Germany, Rome Italy, Madrid Spain, Tokyo Japan, Moscow Russia, "
                        "Warsaw Poland, Beijing China"),
    degrees=_items(Contrast, "older younger, heavier lighter, richer poorer, stronger weaker"),
    transfers=_items(Contrast, "sold bought, gave received"),
    implicative=_items(Contrast, "managed failed, dared refused"),
    complements=_items(Contrast, "alive dead, awake asleep, literate illiterate"),
    truth=_words("true"),
)
IN_DOMAIN = Part(
    women=_words("Susan Diana Rachel Linda Sophie Claire Monica Teresa"),
    men=_words("Michael Richard Steven Brian Edward Philip Andrew Victor"),
    people=_items(Noun, "nurse nurses, pilot pilots, baker bakers, poet poets, chef chefs, translator translators, "
                        "detective detectives, gardener gardeners, professor professors, mechanic mechanics, "
                        "architect architects, carpenter carpenters"),
    things=_items(Noun, "violin violins, kettle kettles, ladder ladders, wallet wallets, carpet carpets, "
                        "telescope telescopes, trumpet trumpets, blanket blankets, helmet helmets, vase vases"),
    places=_items(Noun, "garden gardens, museum museums, hospital hospitals, church churches, office offices, "
                        "theater theaters"),
    handling=_verbs("fix fixes fixed fixed fixing, acquire acquires acquired acquired acquiring, "
                    "damage damages damaged damaged damaging, examine examines examined examined examining, "
                    "replace replaces replaced replaced replacing"),
    social=_verbs("scold scolds scolded scolded scolding, amuse amuses amused amused amusing, "
                  "embarrass embarrasses embarrassed embarrassed embarrassing, "
                  "surprise surprises surprised surprised surprising, "
                  "comfort comforts comforted comforted comforting"),
    intransitive=_verbs("smile smiles smiled smiled smiling, shiver shivers shivered shivered shivering, "
                        "snore snores snored snored snoring, tremble trembles trembled trembled trembling, "
                        "giggle giggles giggled giggled giggling, "
                        "limp limps limped limped limping"),
    moods=_words("sad proud busy sick cheerful lonely"),
    looks=_words("large new cheap dirty shiny"),
    males=_items(Noun, "man men, brother brothers, prince princes"),
    females=_items(Noun, "woman women, sister sisters, princess princesses"),
    mass=_words("butter salt honey juice bread"),
    getting=_verbs("need needs needed needed needing, collect collects collected collected collecting"),
    irregular=_verbs("""take takes took taken taking: bus medicine
                        choose chooses chose chosen choosing: gift
                        sing sings sang sung singing: song hymn
                        ride rides rode ridden riding: camel scooter
                        tear tears tore torn tearing: shirt curtain
                        fly flies flew flown flying: kite drone"""),
    manner=_words("quietly deliberately promptly"),
    attitude=_verbs("claim claims claimed claimed claiming, insist insists insisted insisted insisting"),
    seeing=_verbs("notice notices noticed noticed noticing, paint paints painted painted painting"),
    chains=_items(Chain, "parrot bird creature, eagle bird creature, beetle insect creature, wasp insect creature, "
                         "taxi car vehicle, limousine car vehicle"),
    staying=_verbs("stay stays stayed stayed staying, study studies studied studied studying"),
    cities=_items(City, "Cairo Egypt, Lima Peru, Vienna Austria, Oslo Norway, Dublin Ireland, Lisbon Portugal"),
    degrees=_items(Contrast, "taller shorter, faster slower"),
    transfers=_items(Contrast, "lent borrowed"),
    implicative=_items(Contrast, "remembered forgot, proceeded declined"),
    complements=_items(Contrast, "present absent, married unmarried, insured uninsured"),
    truth=_words("correct"),
)
OUT_OF_DOMAIN = Part(
    women=_words("Lisa Olivia Hannah Rebecca Amanda Vanessa Margaret Emily"),
    men=_words("James Henry Oliver Samuel Patrick Gregory Walter Frank"),
    people=_items(Noun, "judge judges, actor actors, singer singers, manager managers, banker bankers, "
                        "athlete athletes, author authors, sailor sailors, guard guards, tailor tailors, "
                        "clerk clerks, dancer dancers"),
    things=_items(Noun, "desk desks, piano pianos, statue statues, necklace necklaces, backpack backpacks, "
                        "candle candles, bucket buckets, drum drums, jacket jackets, telephone telephones"),
    # Things and places begin with consonants because "a" and "every" trade places in front of them.
    places=_items(Noun, "palace palaces, factory factories, stadium stadiums, restaurant restaurants, "
                        "bakery bakeries, temple temples"),
    handling=_verbs("remove removes removed removed removing, bring brings brought brought bringing, "
                    "conceal conceals concealed concealed concealing, obtain obtains obtained obtained obtaining, "
                    "grab grabs grabbed grabbed grabbing"),
    social=_verbs("thank thanks thanked thanked thanking, greet greets greeted greeted greeting, "
                  "insult insults insulted insulted insulting, invite invites invited invited inviting, "
                  "contact contacts contacted contacted contacting, avoid avoids avoided avoided avoiding"),
    intransitive=_verbs("grin grins grinned grinned grinning, weep weeps wept wept weeping, "
                        "stumble stumbles stumbled stumbled stumbling, "
                        "hesitate hesitates hesitated hesitated hesitating, "
                        "collapse collapses collapsed collapsed collapsing, "
                        "frown frowns frowned frowned frowning"),
    moods=_words("upset bored anxious thirsty friendly"),
    looks=_words("beautiful strange black"),
    gradable=_items(Gradable, "brave braver bravest, kind kinder kindest, smart smarter smartest, "
                              "wise wiser wisest, strict stricter strictest, loud louder loudest"),
    believing=_verbs("believe believes believed believed believing, doubt doubts doubted doubted doubting, "
                     "hear hears heard heard hearing"),
    claims=_words("story rumor statement"),
    falsehood=_words("false wrong"),
    factive=_words("knew realized learned"),
    nonfactive=_words("believed suspected assumed"),
    affirming=_words("Luckily Sadly Unfortunately"),
    hedging=_words("Perhaps Maybe Possibly"),
    other=_words("wonder knows recalled clear"),
)
PRONOUNS = _items(Pronoun, "he him, she her, they them, I me, we us")
NUMERALS = _words("two three four five six seven eight nine ten")
TIMES = ("this morning", "last night", "last week", "on Monday", "on Sunday")  # two words: short sentences need them
FUNCTION_WORDS = frozenset("""
    a an the this that these those every several all some none no not any both either neither most many much
    few little fewer more least at one two three four five six seven eight nine ten first second
    i me we us he him she her it they them himself herself themselves
    nobody who what why when if because before after and or nor too so as than there
    is are was were has have had will did can cannot must to of in on by for from with near beside above
    below about aren't don't hasn't won't didn't can't
    today yesterday soon now again often always never ever already yet very even enough
    morning night week monday sunday midnight last next
""".split())


class Draw:
    """Seeded choices that are the same on every platform.

    Only ``random.Random.random`` is used: Python promises its sequence for a given seed in all versions, but
    not what ``choice``, ``sample`` or ``shuffle`` make of it (nor does numpy promise this of its generators).
    """

    def __init__(self, seed):
        self._random = random.Random(seed).random
        self._decks = {}

    def some(self, items, count):
        """``count`` different items in random order (as many as there are, if fewer)."""
        left, taken = list(items), []
        while left and len(taken) < count:
            taken.append(left.pop(int(self._random() * len(left))))
        return taken

    def shuffled(self, items):
        return self.some(items, len(items))

    def deal(self, name, items, count):
        """``count`` different items off the shuffled deck ``name``, which is renewed when it runs out.

        In small sets this spreads the words more evenly than independent draws would.
        """
        if len(self._decks.get(name, ())) < count:
            self._decks[name] = self.shuffled(items)
        dealt, self._decks[name] = self._decks[name][:count], self._decks[name][count:]
        return dealt


# Group of a part -> slot names of the templates. Slots of one group always hold different words.
_SLOTS = {
    "women": "F1 F2", "men": "M1 M2", "people": "N1 N2 N3", "things": "T1 T2 T3", "places": "P",
    "handling": "V V2", "social": "S S2", "intransitive": "I I2 I3", "moods": "mood mood2", "looks": "look look2",
    "males": "male", "females": "female", "mass": "mass", "getting": "G", "irregular": "R", "manner": "manner",
    "attitude": "that_verb", "seeing": "see", "chains": "kind", "staying": "stay", "cities": "U U2",
    "degrees": "degree", "transfers": "transfer", "implicative": "implicative", "complements": "state",
    "truth": "true", "gradable": "grade", "believing": "believe", "claims": "claim", "falsehood": "false",
    "factive": "factive", "nonfactive": "nonfactive", "affirming": "affirming", "hedging": "hedging",
}


def fill(part, draw):
    """Words of ``part`` for all slots that its groups allow, as a dictionary for ``str.format``."""
    filled = {}
    for group, names in _SLOTS.items():
        names = names.split()
        filled.update(zip(names, draw.deal(group, getattr(part, group), len(names))))
    filled.update(zip("ABCD", draw.deal("names", part.women + part.men, 4)))
    if part.irregular:
        filled["object"] = draw.some(filled["R"].obj, 1)[0]
    numerals = sorted(draw.some(NUMERALS, 3), key=NUMERALS.index)
    filled.update(zip(("low", "middle", "high"), numerals))
    filled["pro"] = draw.deal("pronouns", PRONOUNS, 1)[0]
    filled["when"] = draw.deal("times", TIMES, 1)[0]
    return filled


def sentence(text):
    """``text`` with a capital in front and single spaces."""
    text = " ".join(text.split())
    return text[0].upper() + text[1:]


def tokens(text):
    """The words of ``text`` in lower case, without punctuation."""
    return re.findall(r"[a-z']+", text.lower())
