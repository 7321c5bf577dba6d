"""Facts: short questions about places of the world, answered from the texts that come with nanoray.

The World Factbook among those texts gives each place a profile of fields, without a line that names
the place. So a profile is taken only where it is beyond doubt whose it is.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from evals.spelling import check_index
from evals.words import embedded_texts
from nanoray.task import Example, Grade

PLACES = """
Afghanistan, Albania, Algeria, Andorra, Angola, Anguilla, Argentina, Armenia, Aruba, Austria,
Azerbaijan, Bahrain, Bangladesh, Barbados, Belarus, Belgium, Belize, Benin, Bermuda, Bhutan,
Bolivia, Bosnia and Herzegovina, Botswana, Brazil, Brunei, Bulgaria, Burkina Faso, Burma, Burundi,
Cabo Verde, Cambodia, Cameroon, Canada, Chad, Chile, China, Colombia, Costa Rica, Cote d'Ivoire,
Croatia, Cuba, Curacao, Cyprus, Denmark, Djibouti, Dominica, Ecuador, Egypt, El Salvador,
Equatorial Guinea, Eritrea, Estonia, Ethiopia, Fiji, Finland, France, French Polynesia, Gabon,
Georgia, Germany, Ghana, Gibraltar, Greece, Greenland, Grenada, Guam, Guatemala, Guernsey, Guinea,
Guinea-Bissau, Guyana, Haiti, Honduras, Hong Kong, Hungary, Iceland, India, Indonesia, Iran, Iraq,
Ireland, Israel, Italy, Jamaica, Japan, Jersey, Jordan, Kazakhstan, Kenya, Kiribati, Kosovo, Kuwait,
Kyrgyzstan, Laos, Latvia, Lebanon, Lesotho, Liberia, Libya, Liechtenstein, Lithuania, Luxembourg,
Macau, Macedonia, Madagascar, Malawi, Malaysia, Mali, Malta, Mauritania, Mauritius, Mexico,
Micronesia, Moldova, Monaco, Mongolia, Montenegro, Montserrat, Morocco, Mozambique, Namibia, Nauru,
Nepal, New Caledonia, New Zealand, Nicaragua, Niger, Nigeria, North Korea, Norway, Oman, Pakistan,
Palau, Panama, Papua New Guinea, Paraguay, Peru, Poland, Portugal, Puerto Rico, Qatar, Romania,
Russia, Rwanda, Saint Barthelemy, Saint Helena, Saint Kitts and Nevis, Saint Lucia, Samoa,
San Marino, Saudi Arabia, Senegal, Serbia, Sierra Leone, Singapore, Slovakia, Slovenia, Somalia,
South Africa, South Korea, South Sudan, Spain, Sri Lanka, Sudan, Suriname, Swaziland, Sweden,
Switzerland, Syria, Taiwan, Tajikistan, Tanzania, Thailand, Timor-Leste, Togo, Tokelau, Tonga,
Trinidad and Tobago, Tunisia, Turkey, Turkmenistan, Tuvalu, Uganda, Ukraine, Uruguay, Uzbekistan,
Vanuatu, Venezuela, Vietnam, Western Sahara, Yemen, Zambia, Zimbabwe
"""
"""Whose profiles are looked for: names without an article, in the spelling of the factbook."""

OTHER_PLACES = """
American Samoa, Antigua and Barbuda, Australia, Bahamas, Cayman Islands, Central African Republic,
Christmas Island, Comoros, Cook Islands, Czech Republic, Democratic Republic of the Congo,
Dominican Republic, Falkland Islands, Faroe Islands, Gambia, Gaza Strip, Isle of Man, Maldives,
Marshall Islands, Netherlands, Niue, Norfolk Island, Northern Mariana Islands, Philippines,
Pitcairn Islands, Republic of the Congo, Saint Martin, Saint Vincent and the Grenadines,
Sao Tome and Principe, Seychelles, Sint Maarten, Solomon Islands, Svalbard,
Turks and Caicos Islands, United Arab Emirates, United Kingdom, United States, Virgin Islands,
Wallis and Futuna, West Bank
"""
"""Names that a profile may be about and that are not asked for. (Australia has the profiles of its
islands too, in which it is the only name.)"""

WITH_ARTICLE = ("Caribbean", "Middle East")
"""Values that are not said without one."""

FIRST_NAME_WITHIN_CHARS = 120
BACKGROUND = "Background: "
SHUFFLE_SEED = 42


@dataclass(frozen=True)
class Kind:
    """One field of the profiles, and how it is asked for."""

    field: str
    value: re.Pattern[str]
    """What is taken of the field: the whole match."""
    train: tuple[str, ...]
    test: tuple[str, ...]
    answer: str


KINDS = (
    Kind(
        field="Location",
        value=re.compile(r"[A-Z][A-Za-z ]+(?=,)"),
        train=(
            "Where is {place}?",
            "In which part of the world is {place}?",
            "Where does {place} lie?",
            "Tell me where {place} is.",
            "What part of the world does {place} belong to?",
            "Do you know where {place} is?",
        ),
        test=("In what region of the world can {place} be found?", "{place}: where is that?"),
        answer="{place} is in {value}.",
    ),
    Kind(
        field="Climate",
        value=re.compile(r"(?!varies\b)[^;(]+"),
        train=(
            "What is the climate of {place}?",
            "What climate does {place} have?",
            "How is the climate in {place}?",
            "Tell me about the climate of {place}.",
            "Which climate has {place}?",
            "Describe the climate in {place}.",
        ),
        test=("What sort of climate is there in {place}?", "{place}: what is its climate?"),
        answer="The climate of {place}: {value}.",
    ),
    Kind(
        field="time difference",
        value=re.compile(r"UTC ?[-+]?\d+(\.\d+)?"),
        train=(
            "What is the time zone of {place}?",
            "Which time zone is {place} in?",
            "What time zone does {place} use?",
            "Tell me the time zone of {place}.",
            "How far is the time of {place} from UTC?",
            "What is the time difference of {place} to UTC?",
        ),
        test=("In what time zone does {place} lie?", "{place}: what is its time zone?"),
        answer="The time in {place} is {value}.",
    ),
    Kind(
        field="Area - comparative",
        value=re.compile(r"[^;(]+"),
        train=(
            "How large is {place}?",
            "How big is {place}?",
            "What is the size of {place}?",
            "Tell me how large {place} is.",
            "How much land does {place} cover?",
            "What can the area of {place} be compared with?",
        ),
        test=("Of what size is {place}?", "{place}: how large is it?"),
        answer="{place} is {value}.",
    ),
)


@dataclass(frozen=True)
class Fact:
    """One value of one place."""

    place: str
    kind: Kind
    value: str


class Facts:
    """Questions about the region, climate, time zone and size of places.

    Facts cannot be held out, so training asks for all of them; tests ask in other words. Without a
    size, training puts each fact in all ways, and a test in one.
    """

    name: str = "Facts"
    baseline: float = 0.0
    sandbox: str | None = None

    def __init__(self, split: Literal["train", "test"], *, size: int | None = None) -> None:
        self.split = split
        self.facts = read_facts(embedded_texts())
        random.Random(SHUFFLE_SEED).shuffle(self.facts)
        ways = len(KINDS[0].train) if split == "train" else 1
        self.size = len(self.facts) * ways if size is None else size

    def __len__(self) -> int:
        """Give the number of questions."""
        return self.size

    def example(self, index: int) -> Example:
        """Make one question: each fact in turn, and then each of them in another way."""
        check_index(index, self.size)
        fact = self.fact(index)
        ways = fact.kind.train if self.split == "train" else fact.kind.test
        round_, position = divmod(index, len(self.facts))
        question = ways[(round_ + position) % len(ways)].format(place=fact.place)
        value = f"the {fact.value}" if fact.value in WITH_ARTICLE else fact.value
        answer = fact.kind.answer.format(place=fact.place, value=value)
        messages = (
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        )
        return Example(messages)

    def grade(self, index: int, answer: str) -> Grade:
        """Look for the value in an answer, as a word of its own; capitals do not matter."""
        value = self.fact(index).value
        found = re.search(rf"(?<!\w){re.escape(value)}(?!\w|\.\d)", answer, re.IGNORECASE)
        return Grade(True) if found else Grade(False, f"without {value!r}")

    def fact(self, index: int) -> Fact:
        """Give the fact that a question is about."""
        return self.facts[index % len(self.facts)]


def read_facts(texts: list[str]) -> list[Fact]:
    """Gather the facts of all places whose profile is found among the texts."""
    facts = []
    for place, profile in sorted(find_profiles(texts).items()):
        for kind in KINDS:
            found = kind.value.match(field_of(profile, kind.field))
            if found:
                facts.append(Fact(place, kind, found[0].strip()))
    return facts


def find_profiles(texts: list[str]) -> dict[str, str]:
    """Give place -> profile, from its background on, where there is no doubt.

    The background begins with the place's name, or near; no name stands in the profile as often;
    the place is not located by its own name, as dependent islands are; and no other profile is the
    place's by these signs.
    """
    asked = set(names_in(PLACES))
    names = sorted([*asked, *names_in(OTHER_PLACES)], key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, names))})(?![\w-])")
    claims: dict[str, list[str]] = {}
    for text in texts:
        _, background, profile = text.partition(BACKGROUND)
        first = pattern.search(profile)
        if not background or first is None or first.start() >= FIRST_NAME_WITHIN_CHARS:
            continue
        (name, count), *others = Counter(pattern.findall(profile)).most_common(2)
        is_located_by_name = name in field_of(profile, "Location")
        is_most_common = count > 1 and not any(other == count for _, other in others)
        if name == first[1] and is_most_common and not is_located_by_name:
            claims.setdefault(name, []).append(profile)
    return {
        name: profiles[0]
        for name, profiles in claims.items()
        if name in asked and len(profiles) == 1
    }


def names_in(table: str) -> list[str]:
    """Read names with commas between them."""
    return [name.strip() for name in table.replace("\n", " ").split(",")]


def field_of(profile: str, field: str) -> str:
    """Give what follows "field: " at the beginning of a paragraph; empty without such a one."""
    found = re.search(rf"^{re.escape(field)}: (.*)$", profile, re.MULTILINE)
    return found[1] if found else ""
