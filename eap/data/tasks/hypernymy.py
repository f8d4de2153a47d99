"""Hypernymy: ", robins and other" -> " birds".

The corrupted prompt names something of another class, in as many tokens; its class's names are the
incorrect answers.
"""

import ast
import re
from collections import defaultdict
from random import Random

from eap.data.tasks.task import AnswerSets, Keep, Row, Task, keep_all
from eap.data.vocabulary import Vocabulary
from eap.errors import quoted

# Accepted names of a class: members.
CLASSES = {
    tuple(names.split()): tuple(member.strip() for member in members.split(","))
    for names, members in {
        "birds bird": "robins, eagles, hawks, owls, crows, pigeons, ducks, parrots, swans, sparrows",
        "insects insect bugs": "ants, bees, flies, beetles, moths, wasps, mosquitoes, butterflies, crickets",
        "animals animal": "horses, cows, pigs, sheep, goats, lions, tigers, wolves, bears, rabbits, deer, elephants",
        "fish fishes": "salmon, trout, tuna, cod, sharks, herring, carp, bass, eels",
        "reptiles reptile": "snakes, lizards, turtles, crocodiles, alligators, iguanas, geckos",
        "fruits fruit": "apples, oranges, bananas, grapes, pears, peaches, cherries, lemons, plums, mangoes",
        "vegetables vegetable": "carrots, onions, potatoes, beans, peas, spinach, cabbage, lettuce, celery, broccoli",
        "sports sport": "football, basketball, baseball, tennis, golf, hockey, soccer, rugby, cricket, volleyball",
        "countries country nations": "France, Germany, Spain, Italy, Japan, China, Brazil, India, Canada, Mexico, Russia, Egypt",
        "cities city towns": "London, Paris, Berlin, Tokyo, Chicago, Boston, Madrid, Rome, Moscow, Dublin",
        "colors color colours": "red, blue, green, yellow, purple, orange, pink, brown, black",
        "metals metal": "iron, copper, gold, silver, steel, aluminum, zinc, nickel, lead",
        "tools tool": "hammers, saws, drills, axes, shovels, chisels, rakes, pliers",
        "weapons weapon arms": "guns, rifles, swords, knives, pistols, spears, bombs, grenades",
        "instruments instrument": "guitars, pianos, violins, drums, flutes, trumpets, harps, cellos",
        "vehicles vehicle": "cars, trucks, buses, vans, motorcycles, tractors, taxis, ambulances",
        "boats boat ships vessels": "canoes, yachts, ferries, kayaks, rafts, sailboats, barges",
        "trees tree": "oaks, pines, elms, maples, birches, palms, willows, cedars",
        "flowers flower": "roses, lilies, tulips, daisies, violets, orchids, daffodils, poppies",
        "drinks drink beverages": "coffee, tea, beer, wine, juice, soda, milk, whiskey, lemonade",
        "clothes clothing garments": "shirts, pants, jackets, dresses, skirts, socks, coats, sweaters, jeans",
        "furniture furnishings": "chairs, tables, beds, sofas, desks, couches, cabinets, shelves, dressers",
        "languages language": "English, French, German, Spanish, Italian, Chinese, Arabic, Latin, Greek",
        "diseases disease illnesses": "cancer, malaria, diabetes, flu, measles, asthma, tuberculosis, cholera",
        "sciences science": "physics, chemistry, biology, geology, astronomy, botany, zoology",
        "emotions emotion feelings": "anger, fear, joy, sadness, love, grief, shame, envy",
        "relatives relative family": "uncles, aunts, cousins, nephews, nieces, grandparents, brothers, sisters",
        "buildings building": "houses, churches, schools, hotels, hospitals, factories, castles, towers",
        "jewelry jewels": "necklaces, earrings, bracelets, rings, pendants, brooches",
        "subjects subject": "math, history, geography, algebra, grammar, literature",
    }.items()
}

TEMPLATE = ", {} and other"

QUOTED = r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\""
LIST = re.compile(rf"\s*\[\s*(?:{QUOTED})(?:\s*,\s*(?:{QUOTED}))*\s*,?\s*\]\s*")


def generate(random: Random, vocabulary: Vocabulary, keep: Keep = keep_all) -> list[dict[str, str]]:
    """One pair for every member that one of another class can replace."""
    accepted = {
        names: [name for name in names if vocabulary.is_one_token(f" {name}")] for names in CLASSES
    }
    members = [
        (member, names) for names, own in CLASSES.items() if accepted[names] for member in own
    ]
    prompts = vocabulary.encode_all([TEMPLATE.format(member) for member, _ in members])
    same_length = defaultdict(list)
    for (member, names), prompt in zip(members, prompts, strict=True):
        same_length[len(prompt)].append((member, names))
    rows = []
    for (member, names), prompt in zip(members, prompts, strict=True):
        others = [
            (other, own)
            for other, own in same_length[len(prompt)]
            if not set(accepted[own]) & set(accepted[names])
        ]
        if not others:
            continue
        other, own = random.choice(others)
        rows.append(
            {
                "clean": TEMPLATE.format(member),
                "h1": member,
                "hypernym": names[0],
                "answers": str(accepted[names]),
                "answers_idx": str([vocabulary.token(f" {name}") for name in accepted[names]]),
                "corrupted": TEMPLATE.format(other),
                "c1": other,
                "corrupted_hypernym": own[0],
                "corrupted_answers": str(accepted[own]),
                "corrupted_answers_idx": str([vocabulary.token(f" {n}") for n in accepted[own]]),
            }
        )
    rows = [row for row in rows if keep(row)]
    random.shuffle(rows)
    return rows


def answers(row: Row, vocabulary: Vocabulary) -> AnswerSets:
    """The names of the class, and those of the corrupted one."""
    return _names(row, "answers"), _names(row, "corrupted_answers")


def _names(row: Row, column: str) -> tuple[str, ...]:
    """The words of a list as Python writes it."""
    names: list[str] = []
    if LIST.fullmatch(row[column]):
        try:
            names = [ast.literal_eval(word) for word in re.findall(QUOTED, row[column])]
        except (ValueError, SyntaxError):  # an escape that is none
            names = []
    if not names or not all(name.strip() for name in names):
        raise ValueError(
            f"{column} is {quoted(row[column])}, not a list of words such as ['birds', 'bird']"
        )
    return tuple(f" {name.strip()}" for name in names)


TASK = Task(
    name="hypernymy-comma",
    display_name="Hypernymy",
    metric="prob_diff",
    cross_task_metric="logit_diff",
    columns=("answers", "corrupted_answers"),
    generate=generate,
    answers=answers,
    answer_ids={"answers_idx": "correct", "corrupted_answers_idx": "incorrect"},
    order=6,
    main=True,
    circuit_size=1600,
)
