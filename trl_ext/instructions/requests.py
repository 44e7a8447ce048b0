# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What the generated prompts ask for: topics, requests about them, and the wordings of each kind of constraint.

A topic has two words that an answer about it may well use, for the constraints on keywords.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """
    Something to ask about.

    Args:
        text (`str`): How it stands in a request.
        keywords (`tuple[str, ...]`): Words that an answer may well use, and that are not in `text`.
    """

    text: str
    keywords: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """
    Topics of one form, and the requests that take them.

    Args:
        requests (`tuple[str, ...]`): Requests with the place `{topic}`.
        train (`tuple[Topic, ...]`): Topics of the split `train`.
        held_out (`tuple[Topic, ...]`): Topics of the other splits.
        keys (`tuple[str, ...]`): Keys of a JSON answer that fit the requests.
        language (`str`, *optional*, defaults to `"en"`): Language of the requests.
    """

    requests: tuple[str, ...]
    train: tuple[Topic, ...]
    held_out: tuple[Topic, ...]
    keys: tuple[str, ...] = ()
    language: str = "en"


def _topics(lines: str) -> tuple[Topic, ...]:
    """One topic a line: its text, a bar, its keywords."""
    rows = [line.split("|") for line in lines.strip().splitlines()]
    return tuple(Topic(text.strip(), tuple(keywords.split())) for text, keywords in rows)


_EXPLAIN = Family(
    requests=(
        "Explain {topic}.",
        "Can you explain {topic}?",
        "Please tell me {topic}.",
        "I would like to know {topic}.",
        "Help me understand {topic}.",
        "My daughter wants to know {topic}. What should I tell her?",
    ),
    train=_topics("""
        why leaves change colour in autumn | tree light
        how a bicycle stays upright | wheel balance
        why the sea is salty | water rivers
        how bread rises | yeast air
        why we dream | sleep brain
        how bees make honey | flowers hive
        why the moon has phases | sun earth
        how a refrigerator keeps food cold | heat gas
        why cats purr | happy sound
        how rainbows form | light rain
        why onions make us cry | eyes tears
        how a microwave heats food | water energy
        why birds fly south in winter | warm food
        how soap removes dirt | water oil
        why we yawn | tired air
        how a compass works | north magnet
        why ice floats | water dense
        how a seed becomes a plant | soil water
        why the sky is blue | light sun
        how a lighthouse helps ships | light sea
    """),
    held_out=_topics("""
        why metal feels colder than wood | heat hand
        how a thermometer works | temperature liquid
        why popcorn pops | heat steam
        how spiders spin webs | silk insects
        why stars twinkle | light air
        how a vaccine protects us | body virus
        why coffee keeps us awake | caffeine brain
        how a sailing boat moves | wind sail
    """),
    keys=("answer", "reason", "example"),
)

_ADVISE = Family(
    requests=(
        "How can I {topic}?",
        "What is a good way to {topic}?",
        "Give me some advice. I want to {topic}.",
        "I am trying to {topic}. What should I do first?",
        "My friend wants to {topic}. What would you tell him?",
        "Tell me how to {topic}.",
    ),
    train=_topics("""
        fall asleep faster | bed quiet
        save money on groceries | list price
        keep houseplants alive | water light
        learn to cook | recipe practice
        make new friends in a new city | people join
        prepare for a job interview | practice questions
        keep a kitchen tidy | clean dishes
        start running | shoes slow
        read more books | time page
        spend less time on the phone | screen walk
        teach a dog to sit | treat patience
        remember people's names | repeat face
        stay calm before an exam | breathe study
        pack for a weekend trip | bag clothes
        write a thank-you letter | kind gift
        learn a new language | practice words
        get up early | alarm morning
        remove a coffee stain from a shirt | water soap
        plan a birthday party | guests cake
        drink more water every day | bottle glass
    """),
    held_out=_topics("""
        keep a balcony garden | pots sun
        give a good speech | practice audience
        fix a squeaky door | oil hinge
        choose a birthday present for a colleague | budget useful
        keep bananas fresh for longer | cool kitchen
        cycle to work in winter | warm lights
        learn to play the guitar | practice chords
        say no politely | honest thank
    """),
    keys=("tip", "reason", "first_step"),
)

_DESCRIBE = Family(
    requests=(
        "Describe {topic}.",
        "Write a short description of {topic}.",
        "Put {topic} into words.",
        "What is {topic} like?",
        "Tell me about {topic}.",
        "I need a few lines about {topic} for my blog.",
    ),
    train=_topics("""
        a rainy afternoon in a big city | street umbrella
        a busy farmers' market | fruit people
        an old library | books quiet
        a beach in winter | wind sand
        a small mountain village | snow houses
        a family dinner | table food
        a long train journey | window seat
        a garden in spring | flowers green
        a night under the stars | sky dark
        a bakery early in the morning | bread warm
        a football match | crowd ball
        a sleeping cat | soft fur
        a walk in the forest | trees birds
        a thunderstorm | rain lightning
        a school playground | children noise
        a fishing harbour | boats sea
        a cosy café | coffee chairs
        a snowy street | white cold
    """),
    held_out=_topics("""
        a desert at noon | sand heat
        a crowded airport | bags gate
        a village fair | music lights
        an abandoned house | dust windows
        a lake at sunset | water orange
        a chess game in the park | board players
        a kitchen after a party | dishes glasses
    """),
    keys=("place", "mood", "detail"),
)

_RECOMMEND = Family(
    requests=(
        "Suggest {topic}.",
        "Can you recommend {topic}?",
        "I am looking for {topic}. What do you suggest?",
        "What would be {topic}?",
        "Name {topic} and say why you chose it.",
        "Please help me to find {topic}.",
    ),
    train=_topics("""
        an easy dinner for two | pasta sauce
        a good hobby for someone who works all day | relax fun
        a healthy breakfast | fruit eggs
        a name for a small bakery | bread sweet
        a present for a grandmother | photo flowers
        a board game for a rainy day | players family
        a good pet for a small flat | cat quiet
        a warm drink for a cold evening | tea milk
        a simple exercise for the back | stretch floor
        a fun activity for a class of ten-year-olds | play team
        a vegetable that is easy to grow | tomato soil
        a song for a long drive | music road
        a quick snack before sport | banana energy
        a quiet place to read | chair window
        a slogan for a bicycle shop | ride wheels
        a good first book in English for a learner | story simple
    """),
    held_out=_topics("""
        a soup for a cold day | vegetables warm
        a name for a friendly robot | short smart
        a colour for a small bedroom | light calm
        a day trip for a family with small children | zoo picnic
        a topic for a school essay | history nature
        a dessert without chocolate | fruit cream
    """),
    keys=("choice", "reason", "cost"),
)

_COMPARE = Family(
    requests=(
        "What is the difference between {topic}?",
        "Compare {topic}.",
        "Tell me how to choose between {topic}.",
        "Which would you choose between {topic}, and why?",
        "A friend asked me about the difference between {topic}. What should I say?",
    ),
    train=_topics("""
        tea and coffee | drink taste
        cats and dogs | pet friendly
        a train and a plane | fast travel
        living in a city and living in the country | quiet people
        butter and olive oil | cooking healthy
        reading a book and watching a film | story time
        renting and buying a home | money move
        summer and winter | cold sun
        running and swimming | water legs
        a laptop and a tablet | screen keyboard
        fresh and frozen vegetables | taste price
        working at home and working in an office | people time
        lakes and rivers | water flow
        paper books and electronic books | screen shelf
    """),
    held_out=_topics("""
        a violin and a guitar | strings bow
        hiking and climbing | mountain rope
        white bread and brown bread | flour healthy
        a hotel and a campsite | tent bed
        email and letters | paper fast
        frogs and toads | skin water
    """),
    keys=("first", "second", "difference"),
)

_WRITE = Family(
    requests=(
        "Write a message {topic}.",
        "Write a short note {topic}.",
        "Help me to write a few lines {topic}.",
        "I need a text {topic}.",
        "Please draft a short email {topic}.",
    ),
    train=_topics("""
        to invite a neighbour to dinner | friday food
        to thank a teacher | class learned
        to wish a friend a happy birthday | year wonderful
        to say sorry for being late | wait next
        to ask the landlord to repair the heating | cold soon
        to cancel an appointment at the dentist | date sorry
        to congratulate a colleague on a new baby | joy family
        to tell the team about a new meeting time | monday change
        to ask a friend for a lift to the airport | car early
        to sell an old bicycle | price condition
        to welcome a new neighbour | street help
        to remind someone to water the plants | kitchen week
        to ask a shop about an order that did not arrive | number days
        to cheer up a friend who is ill | soon rest
    """),
    held_out=_topics("""
        to offer a free sofa | collect clean
        to ask for a day off | friday work
        to thank the host of a party | evening food
        to find a lost scarf | red bus
        to invite colleagues to a picnic | sunday park
        to praise a restaurant | dish service
    """),
    keys=("greeting", "message", "signature"),
)

# The language of the request is to be kept; nothing in these requests says so.
_FRENCH = Family(
    requests=("Expliquez-moi {topic}.", "J'aimerais savoir {topic}.", "Pouvez-vous me dire {topic} ?"),
    train=_topics("""
        pourquoi le ciel est bleu | lumière
        comment bien dormir | nuit
        comment faire une bonne soupe | légumes
        pourquoi les chats ronronnent | bruit
        comment apprendre une langue | mots
    """),
    held_out=_topics("""
        comment arroser les plantes | eau
        pourquoi la mer est salée | sel
    """),
    language="fr",
)
_SPANISH = Family(
    requests=("Explícame {topic}.", "Me gustaría saber {topic}.", "¿Puedes decirme {topic}?"),
    train=_topics("""
        por qué el cielo es azul | luz
        cómo dormir mejor | noche
        cómo preparar una buena sopa | verduras
        por qué ronronean los gatos | sonido
        cómo aprender un idioma | palabras
    """),
    held_out=_topics("""
        cómo cuidar las plantas | agua
        por qué el mar es salado | sal
    """),
    language="es",
)
_GERMAN = Family(
    requests=("Erkläre mir, {topic}.", "Ich möchte wissen, {topic}.", "Kannst du mir sagen, {topic}?"),
    train=_topics("""
        warum der Himmel blau ist | Licht
        wie man besser schläft | Nacht
        wie man eine gute Suppe kocht | Gemüse
        warum Katzen schnurren | Geräusch
        wie man eine Sprache lernt | Wörter
    """),
    held_out=_topics("""
        wie man Pflanzen pflegt | Wasser
        warum das Meer salzig ist | Salz
    """),
    language="de",
)
_ITALIAN = Family(
    requests=("Spiegami {topic}.", "Vorrei sapere {topic}.", "Puoi dirmi {topic}?"),
    train=_topics("""
        perché il cielo è blu | luce
        come dormire meglio | notte
        come preparare una buona zuppa | verdure
        perché i gatti fanno le fusa | suono
        come imparare una lingua | parole
    """),
    held_out=_topics("""
        come curare le piante | acqua
        perché il mare è salato | sale
    """),
    language="it",
)

FAMILIES = (_EXPLAIN, _ADVISE, _DESCRIBE, _RECOMMEND, _COMPARE, _WRITE)
OTHER_LANGUAGES = (_FRENCH, _SPANISH, _GERMAN, _ITALIAN)

# Language -> kind -> wordings. `{n}` is the number, `{s}` the plural's ending, `{text}` the words.
WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "sentences_at_most": (
            "Use at most {n} sentence{s}.",
            "Answer in no more than {n} sentence{s}.",
            "Do not write more than {n} sentence{s}.",
            "Your answer must have {n} sentence{s} at most.",
        ),
        "sentences_at_least": (
            "Use at least {n} sentences.",
            "Your answer must have {n} sentences or more.",
            "Write no fewer than {n} sentences.",
        ),
        "sentences_exactly": (
            "Use exactly {n} sentence{s}.",
            "Your answer must have exactly {n} sentence{s}, no more and no less.",
            "Answer in {n} sentence{s} exactly.",
        ),
        "words_at_most": (
            "Use at most {n} words.",
            "Keep your answer to {n} words or fewer.",
            "Do not write more than {n} words.",
            "Answer in no more than {n} words.",
        ),
        "words_at_least": (
            "Use at least {n} words.",
            "Your answer must have {n} words or more.",
            "Write no fewer than {n} words.",
        ),
        "bullets_exactly": (
            "Give your answer as exactly {n} short bullet points.",
            "Answer with {n} bullet points, no more and no less, each on a line that begins with a dash.",
            "Write it as a list of exactly {n} bullets.",
        ),
        "keyword_in": (
            'Use the word "{text}" in your answer.',
            'Your answer must contain the word "{text}".',
            'Include the word "{text}".',
            'Make sure that the word "{text}" appears.',
        ),
        "keyword_out": (
            'Do not use the word "{text}".',
            'Avoid the word "{text}".',
            'The word "{text}" must not appear in your answer.',
            'Answer without the word "{text}".',
        ),
        "begins_with": (
            'Begin your answer with "{text}".',
            'Your answer must start with "{text}".',
            'The first words of your answer must be "{text}".',
        ),
        "ends_with": (
            'End your answer with "{text}"',
            'The last words of your answer must be "{text}"',
            'Finish with the words "{text}"',
        ),
        "json_keys": (
            "Answer only with a JSON object that has exactly the keys {text}.",
            "Give your answer as JSON with the keys {text} and no others.",
            "Your whole answer must be a JSON object with the keys {text} and nothing else.",
        ),
        "lowercase": (
            "Write everything in lowercase letters.",
            "Do not use any capital letters.",
            "Your answer must be all lowercase.",
        ),
        "uppercase": (
            "Write everything in capital letters.",
            "Use capital letters only.",
            "Your answer must be all uppercase.",
        ),
        "no_commas": (
            "Do not use any commas.",
            "Avoid commas.",
            "Your answer must not contain a comma.",
            "Write without commas.",
        ),
        "title_in_double_angles": (
            "Begin with a title in double angular brackets, such as <<title>>, on a line of its own.",
            "Put a title on the first line, wrapped in double angular brackets like <<title>>.",
        ),
        "title_in_square_brackets": (
            "Begin with a title in square brackets, such as [title], on a line of its own.",
            "Put a title on the first line, wrapped in square brackets like [title].",
        ),
    },
    "fr": {
        "words_at_most": ("Utilisez au plus {n} mots.", "Ne dépassez pas {n} mots."),
        "sentences_at_most": ("Répondez en {n} phrase{s} au plus.", "N'écrivez pas plus de {n} phrase{s}."),
        "keyword_in": ("Utilisez le mot « {text} ».", "Le mot « {text} » doit figurer dans votre réponse."),
    },
    "es": {
        "words_at_most": ("Usa como máximo {n} palabras.", "No escribas más de {n} palabras."),
        "sentences_at_most": ("Responde en {n} frase{s} como máximo.", "No escribas más de {n} frase{s}."),
        "keyword_in": ('Usa la palabra "{text}".', 'La palabra "{text}" debe aparecer en tu respuesta.'),
    },
    "de": {
        "words_at_most": ("Verwende höchstens {n} Wörter.", "Schreibe nicht mehr als {n} Wörter."),
        "sentences_at_most": (
            "Die Antwort darf nicht länger als {n} Sätze sein.",
            "Schreibe nicht mehr als {n} Sätze.",
        ),
        "keyword_in": ("Verwende das Wort „{text}“.", "Das Wort „{text}“ muss in der Antwort stehen."),
    },
    "it": {
        "words_at_most": ("Usa al massimo {n} parole.", "Non scrivere più di {n} parole."),
        "sentences_at_most": ("La risposta deve avere al massimo {n} frasi.", "Non scrivere più di {n} frasi."),
        "keyword_in": ('Usa la parola "{text}".', 'La parola "{text}" deve comparire nella risposta.'),
    },
}

# Said where no constraint limits the length.
SHORT = {
    "en": ("Keep it short.", "A short answer is enough.", "Please be brief.", "Answer briefly."),
    "fr": ("Répondez brièvement.",),
    "es": ("Responde brevemente.",),
    "de": ("Antworte kurz.",),
    "it": ("Rispondi brevemente.",),
}

# Kind -> the numbers asked for. All are below what 48 tokens hold, some 36 English words.
NUMBERS = {
    "sentences_at_most": (1, 2),
    "sentences_at_least": (2, 3),
    "sentences_exactly": (1, 2, 3),
    "words_at_most": (15, 20, 25, 30),
    "words_at_least": (20, 25, 30),
    "bullets_exactly": (2, 3),
}
BEGINNINGS = ("In short", "Of course", "Well", "Sure", "Here is my answer", "To begin with")
ENDINGS = ("That is all.", "Good luck!", "I hope this helps.", "Have a nice day.", "The end.")
