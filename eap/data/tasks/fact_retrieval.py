"""Country-capital: " Paris, the capital of" -> " France".

The corrupted prompt names the capital of another country, in as many tokens. A country is
represented by its first token.
"""

from collections import defaultdict
from random import Random

from eap.data.tasks.task import AnswerSets, Keep, Row, Task, keep_all
from eap.data.vocabulary import Vocabulary

CAPITALS = dict(
    line.strip().split(": ")
    for line in """
    Kabul: Afghanistan
    Tirana: Albania
    Algiers: Algeria
    Andorra la Vella: Andorra
    Luanda: Angola
    Saint John's: Antigua and Barbuda
    Buenos Aires: Argentina
    Yerevan: Armenia
    Canberra: Australia
    Vienna: Austria
    Baku: Azerbaijan
    Nassau: Bahamas
    Manama: Bahrain
    Dhaka: Bangladesh
    Bridgetown: Barbados
    Minsk: Belarus
    Brussels: Belgium
    Belmopan: Belize
    Porto-Novo: Benin
    Thimphu: Bhutan
    Sucre: Bolivia
    Sarajevo: Bosnia and Herzegovina
    Gaborone: Botswana
    Brasilia: Brazil
    Bandar Seri Begawan: Brunei
    Sofia: Bulgaria
    Ouagadougou: Burkina Faso
    Gitega: Burundi
    Phnom Penh: Cambodia
    Yaounde: Cameroon
    Ottawa: Canada
    Praia: Cape Verde
    Bangui: Central African Republic
    N'Djamena: Chad
    Santiago: Chile
    Beijing: China
    Bogota: Colombia
    Moroni: Comoros
    San Jose: Costa Rica
    Zagreb: Croatia
    Havana: Cuba
    Nicosia: Cyprus
    Prague: Czech Republic
    Kinshasa: Democratic Republic of the Congo
    Copenhagen: Denmark
    Djibouti City: Djibouti
    Roseau: Dominica
    Santo Domingo: Dominican Republic
    Dili: East Timor
    Quito: Ecuador
    Cairo: Egypt
    San Salvador: El Salvador
    Malabo: Equatorial Guinea
    Asmara: Eritrea
    Tallinn: Estonia
    Mbabane: Eswatini
    Addis Ababa: Ethiopia
    Suva: Fiji
    Helsinki: Finland
    Paris: France
    Libreville: Gabon
    Banjul: Gambia
    Tbilisi: Georgia
    Berlin: Germany
    Accra: Ghana
    Athens: Greece
    Saint George's: Grenada
    Guatemala City: Guatemala
    Conakry: Guinea
    Bissau: Guinea-Bissau
    Georgetown: Guyana
    Port-au-Prince: Haiti
    Tegucigalpa: Honduras
    Budapest: Hungary
    Reykjavik: Iceland
    New Delhi: India
    Jakarta: Indonesia
    Tehran: Iran
    Baghdad: Iraq
    Dublin: Ireland
    Jerusalem: Israel
    Rome: Italy
    Yamoussoukro: Ivory Coast
    Kingston: Jamaica
    Tokyo: Japan
    Amman: Jordan
    Astana: Kazakhstan
    Nairobi: Kenya
    Tarawa: Kiribati
    Pristina: Kosovo
    Kuwait City: Kuwait
    Bishkek: Kyrgyzstan
    Vientiane: Laos
    Riga: Latvia
    Beirut: Lebanon
    Maseru: Lesotho
    Monrovia: Liberia
    Tripoli: Libya
    Vaduz: Liechtenstein
    Vilnius: Lithuania
    Luxembourg City: Luxembourg
    Antananarivo: Madagascar
    Lilongwe: Malawi
    Kuala Lumpur: Malaysia
    Male: Maldives
    Bamako: Mali
    Valletta: Malta
    Majuro: Marshall Islands
    Nouakchott: Mauritania
    Port Louis: Mauritius
    Mexico City: Mexico
    Palikir: Micronesia
    Chisinau: Moldova
    Monte Carlo: Monaco
    Ulaanbaatar: Mongolia
    Podgorica: Montenegro
    Rabat: Morocco
    Maputo: Mozambique
    Naypyidaw: Myanmar
    Windhoek: Namibia
    Yaren: Nauru
    Kathmandu: Nepal
    Amsterdam: Netherlands
    Wellington: New Zealand
    Managua: Nicaragua
    Niamey: Niger
    Abuja: Nigeria
    Pyongyang: North Korea
    Skopje: North Macedonia
    Oslo: Norway
    Muscat: Oman
    Islamabad: Pakistan
    Ngerulmud: Palau
    Ramallah: Palestine
    Panama City: Panama
    Port Moresby: Papua New Guinea
    Asuncion: Paraguay
    Lima: Peru
    Manila: Philippines
    Warsaw: Poland
    Lisbon: Portugal
    Doha: Qatar
    Brazzaville: Republic of the Congo
    Bucharest: Romania
    Moscow: Russia
    Kigali: Rwanda
    Basseterre: Saint Kitts and Nevis
    Castries: Saint Lucia
    Kingstown: Saint Vincent
    Apia: Samoa
    Sao Tome: Sao Tome and Principe
    Riyadh: Saudi Arabia
    Dakar: Senegal
    Belgrade: Serbia
    Victoria: Seychelles
    Freetown: Sierra Leone
    Bratislava: Slovakia
    Ljubljana: Slovenia
    Honiara: Solomon Islands
    Mogadishu: Somalia
    Pretoria: South Africa
    Seoul: South Korea
    Juba: South Sudan
    Madrid: Spain
    Colombo: Sri Lanka
    Khartoum: Sudan
    Paramaribo: Suriname
    Stockholm: Sweden
    Bern: Switzerland
    Damascus: Syria
    Taipei: Taiwan
    Dushanbe: Tajikistan
    Dodoma: Tanzania
    Bangkok: Thailand
    Lome: Togo
    Nuku'alofa: Tonga
    Port of Spain: Trinidad and Tobago
    Tunis: Tunisia
    Ankara: Turkey
    Ashgabat: Turkmenistan
    Funafuti: Tuvalu
    Kampala: Uganda
    Kyiv: Ukraine
    Abu Dhabi: United Arab Emirates
    London: United Kingdom
    Washington: United States
    Montevideo: Uruguay
    Tashkent: Uzbekistan
    Port Vila: Vanuatu
    Vatican City: Holy See
    Caracas: Venezuela
    Hanoi: Vietnam
    Sanaa: Yemen
    Lusaka: Zambia
    Harare: Zimbabwe
    """.strip().splitlines()
)
"""Capital: country."""

TEMPLATE = " {}, the capital of"


def generate(random: Random, vocabulary: Vocabulary, keep: Keep = keep_all) -> list[dict[str, str]]:
    """One pair for every capital that another one of equal length can replace."""
    prompts = vocabulary.encode_all([TEMPLATE.format(capital) for capital in CAPITALS])
    first = {}
    for country in CAPITALS.values():
        tokens = vocabulary.continuation(f" {country}")
        if tokens and not vocabulary.lacks(country, tokens[:1]):
            first[country] = tokens[0]
    same_length = defaultdict(list)
    for capital, prompt in zip(CAPITALS, prompts, strict=True):
        same_length[len(prompt)].append(capital)
    rows = []
    for capital, prompt in zip(CAPITALS, prompts, strict=True):
        country = CAPITALS[capital]
        others = [
            other
            for other in same_length[len(prompt)]
            if CAPITALS[other] in first and first[CAPITALS[other]] != first.get(country)
        ]
        if not others or country not in first:
            continue
        corrupted = random.choice(others)
        rows.append(
            {
                "clean": TEMPLATE.format(capital),
                "capital": capital,
                "country": country,
                "country_idx": str(first[country]),
                "corrupted": TEMPLATE.format(corrupted),
                "corrupted_capital": corrupted,
                "corrupted_country": CAPITALS[corrupted],
                "corrupted_country_idx": str(first[CAPITALS[corrupted]]),
            }
        )
    rows = [row for row in rows if keep(row)]
    random.shuffle(rows)
    return rows


def answers(row: Row, vocabulary: Vocabulary) -> AnswerSets:
    """The country, and that of the corrupted capital."""
    for column in ("country", "corrupted_country"):
        if not row[column].strip():
            raise ValueError(f"{column} is empty")
    return (f" {row['country'].strip()}",), (f" {row['corrupted_country'].strip()}",)


TASK = Task(
    name="fact-retrieval-comma",
    display_name="Country-Capital",
    metric="logit_diff",
    cross_task_metric="prob_diff",
    columns=("country", "corrupted_country"),
    generate=generate,
    answers=answers,
    answer_ids={"country_idx": "correct", "corrupted_country_idx": "incorrect"},
    first_token=True,
    order=4,
    main=True,
    circuit_size=500,
)
