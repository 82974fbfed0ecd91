"""Stemming algorithms and stop words by language.

The stop words are articles, pronouns, prepositions, conjunctions, auxiliaries and the most frequent adverbs. The lists
are deliberately short: `stop-words` and `stopwordsiso` on PyPI have 1,300 words for English, among them `computer` and
`system`, which users search for.
"""

from __future__ import annotations

ALGORITHMS = {
    "ar": "arabic",
    "ca": "catalan",
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "eo": "esperanto",
    "es": "spanish",
    "et": "estonian",
    "eu": "basque",
    "fa": "persian",
    "fi": "finnish",
    "fr": "french",
    "ga": "irish",
    "hi": "hindi",
    "hu": "hungarian",
    "hy": "armenian",
    "id": "indonesian",
    "it": "italian",
    "ja": "",
    "ko": "",
    "lt": "lithuanian",
    "ne": "nepali",
    "nl": "dutch",
    "no": "norwegian",
    "pl": "polish",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "simple": "",
    "sr": "serbian",
    "st": "sesotho",
    "sv": "swedish",
    "ta": "tamil",
    "th": "",
    "tr": "turkish",
    "yi": "yiddish",
    "zh": "",
}
"""Snowball algorithm of each supported language (ISO 639-1), empty for no stemming; `simple` is any other language."""

_LISTS = {
    "ar": "أن أو أي أين إذا إلى إن التي الذي الذين ب بعد به بها بين تلك تم ثم حتى حيث خلال ذلك على عن عند غير ف في"
    " فيه فيها قبل قد كان كانت كل كم كما كيف ل لا لقد لكن لم لماذا لن له لها ليس ما ماذا متى مع من منذ منه منها"
    " هذا هذه هل هم هو هي و وفي وقد وكان وكانت ولا ولم ومن وهو وهي يكون",
    "da": "ad af alle alt anden at blev blive bliver da de dem den denne der deres det dette dig din disse dog du"
    " efter eller en end er et for fra ham han hans har havde have hende hendes her hos hun hvad hvem hvilke"
    " hvilken hvilket hvis hvor hvordan hvorfor i ikke ind jeg jer jo kunne man mange med meget men mig min mine"
    " mit mod ned noget nogle nu når og også om op os over på selv sig sin sine sit skal skulle som sådan thi"
    " til ud under var vi vil ville vor være været",
    "de": "aber alle allem allen aller alles als also am an ander andere anderem anderen anderer anderes auch auf aus"
    " bei bin bis bist da damit dann das dass dein deine dem den denn der derer des dessen die dies diese diesem"
    " diesen dieser dieses doch dort du durch ein eine einem einen einer eines er es etwas euch euer für gegen"
    " hab habe haben hat hatte hatten hier hin hinter ich ihm ihn ihnen ihr ihre ihrem ihren ihrer im in indem"
    " ins ist jede jedem jeden jeder jedes jene jener kann kein keine keinem keinen keiner können könnte man"
    " manche mein meine mich mir mit muss musste nach nicht nichts noch nun nur ob oder ohne sehr sein seine"
    " seinem seinen seiner selbst sich sie sind so solche soll sollte sondern sonst um und uns unser unsere"
    " unter viel vom von vor wann war waren warum was weil welche welchem welchen welcher welches wenn wer werde"
    " werden wessen wie wieder will wir wird wo worden wurde wurden während würde würden zu zum zur zwar"
    " zwischen über",
    "en": "a about above after again against all am an and any are aren as at be because been before being below"
    " between both but by can cannot could couldn did didn do does doesn doing don down during each few for from"
    " further had hadn has hasn have haven having he her here hers herself him himself his how i if in into is"
    " isn it its itself just let me more most mustn my myself no nor not of off on once only or other ought our"
    " ours ourselves out over own same shan she should shouldn so some such than that the their theirs them"
    " themselves then there these they this those through to too under until up very was wasn we were weren what"
    " when where which while who whom whose why will with won would wouldn you your yours yourself yourselves",
    "es": "a al algo algunas algunos ante antes como con contra cual cuando cuál cuáles cuándo cuántas cuánto cuántos"
    " cómo de del desde donde durante dónde e el ella ellas ellos en entre era eran es esa esas ese eso esos"
    " esta estaba estas este esto estos está están fue fueron ha había habían han hasta hay la las le les lo los"
    " me mi mucho muchos muy más nada ni no nos nosotros o otra otras otro otros para pero poco por porque que"
    " quien quienes quién qué se sea ser si sido sin sobre son su sus sí también tan tanto te tiene tienen todo"
    " todos tu tus u un una unas uno unos y ya yo él",
    "fi": "ei eivät emme en et ette että he hän hänen ja joita joka jonka jos jossa jotka kanssa keiden ketkä kuin"
    " kuinka kuka kun me miksi mikä milloin minkä minä missä miten mitkä mitä mukaan mutta myös ne niin noin nyt"
    " nämä ole oli olisi olivat olla ollut on ovat se sekä sen siellä sillä sinä sitä tai te tuo tämä tämän"
    " tässä vaan vai vaikka voi",
    "fr": "ai alors après au aucun aussi autre autres aux avaient avait avant avec avoir c car ce cela ces cet cette"
    " chez ci combien comme comment d dans de depuis des donc dont du elle elles en encore entre est et eu eux"
    " fait furent fut il ils j je l la le les leur leurs lors lorsque lui m ma mais me mes moi mon même n ne ni"
    " nos notre nous on ont ou où par pas pendant peu peut plus pour pourquoi puis qu quand que quel quelle"
    " quelles quels qui quoi s sa sans se sera ses si son sont sous sur t ta te tes toi ton tous tout toute"
    " toutes très tu un une vos votre vous y à étaient était étant été être",
    "hu": "a aki akik akkor alatt amely amelyek ami amit annak az azok azon azt be csak de egy el előtt ennek ez ezek"
    " ezen ezt fel ha hogy hogyan hol hozzá illetve is itt kell ki között le lehet lesz majd meg mely melyik"
    " mert mi mikor milyen minden mint miért most már még nagyon neki nem ott pedig róla sem szerint te után"
    " vagy valamint van volna volt voltak által át én és így úgy ő",
    "id": "ada adalah akan anda antara apa atau bagaimana bahwa belum berapa bisa dalam dan dapat dari dengan di dia"
    " hanya ia ini itu jika juga kami kapan karena ke ketika kita lebih maka mana masih mengapa mereka namun"
    " oleh pada para saat saya sebagai sebelum sebuah secara seperti serta setelah siapa sudah telah tersebut"
    " tetapi tidak untuk yang",
    "it": "a ad agli ai al alla alle allo anche avere aveva avevano c che chi ci come con contro cosa così cui d da"
    " dagli dai dal dalla dalle dallo degli dei del dell della delle dello di dopo dove e ed era erano essere"
    " fra fu furono gli ha hanno ho i il in io l la le lei li lo loro lui ma me mi mia mio ne negli nei nel nell"
    " nella nelle nello noi non nostro o ogni per perché più poi può qual quale quali quando quanti quanto"
    " quella quelle quelli quello questa queste questi questo quindi se sei si sia sono stata stati stato su sua"
    " sue sugli sui sul sulla sulle suo suoi tra tu tutti tutto un una uno vi voi è",
    "nl": "aan al alles als andere bij daar dan dat de der des deze die dit doch doen door dus een en er ge geen haar"
    " had hadden heb hebben heeft hem het hier hij hoe hun iemand iets ik in is ja je kan kon kunnen maar me"
    " meer men met mij mijn moet na naar niet niets nog nu of om omdat onder ons ook op over reeds te tegen toch"
    " toen tot u uit uw van veel voor waar waarom wanneer want waren was wat we wel welke werd werden wie wij"
    " wil worden wordt ze zelf zich zij zijn zo zonder zou",
    "no": "alle at av bare ble blei bli blir da de deg dei deira dem den denne der dere deres det dette di din disse"
    " dit ditt du dykk eg ein eit eller en enn er et ett etter for fordi fra frå før ha hadde han hans har"
    " hennar henne hennes her hun hva hvem hver hvilke hvilken hvis hvor hvordan hvorfor i ikke ikkje inn ja jeg"
    " kan kom kunne man mange med meg meget men mi min mine mitt mot mye må noe noen noko nå når og også om opp"
    " oss over på samme seg selv si sin sine sitt skal skulle slik som så til ut var vi vil ville være vært å",
    "pl": "a aby albo ale ani bez bo by być był była było były będzie będą ci co czy dla dlaczego do gdy gdzie go i"
    " ich ile im inne innych ja jak jaka jaki jakie jako je jego jej jest jeszcze jeśli już każdy kiedy kto"
    " która które którego której który których którym którzy lub ma mają mi mnie może można mu my na nad nawet"
    " nich nie niego niej nim niż o od on ona one oni oraz po pod ponieważ poza przed przez przy się swoje swój"
    " są ta tak także tam te tego tej ten to tu tych tylko tym tą u w we więc wszystkie wszystko z za ze zostać"
    " został została że żeby",
    "pt": "a ao aos aquela aquelas aquele aqueles as até com como da das de dela delas dele deles depois do dos e ela"
    " elas ele eles em entre era eram essa essas esse esses esta estas estava este estes está estão eu foi foram"
    " há isso isto já lhe lhes mais mas me mesmo meu minha muito na nas nem no nos nossa nosso num numa não nós"
    " o onde os ou para pela pelas pelo pelos por porque quais qual quando quanto quantos que quem quê se seja"
    " sem ser seu seus sobre sua suas são só também te tem tinha tu têm um uma umas uns você vos à às é",
    "ro": "a acea aceasta această acel acest acesta aceste acestea ai al ale am ar are asupra au avea avut aşa așa ca"
    " care ce cea cei cel cele cine cu cum când cât câte câți că către da dar de deci decât despre din dintre"
    " după ea ei el ele era erau este eu fi fie fiind fost fără i iar la le li lor lui mai mult ne nici noi nu o"
    " ori pe pentru peste prin până sa sale sau se si sub sunt să său toate tot toți un una unde unei unor unui"
    " va vor îi îl în între își şi și",
    "ru": "а без более больше будет будут бы был была были было быть в вам вас ведь во вот все всего всех вы где да"
    " для до его ее ей ему если есть еще ещё её же за зачем здесь и из или им их к как какая какие каких какой"
    " какую ко когда которая которого которое которой которую которые который которым которых кто куда ли между"
    " меня мне много может можно мой мы на над надо не него нее нет неё ни них но о об однако он она они оно от"
    " очень перед по под после почему при про раз с сам свою себя сколько со так также такой там те тем то того"
    " тоже той только том тот у уже хотя чего чем что чтобы эта эти этих это этого этой этом этот я",
    "sv": "alla allt att av bara blev bli blir blivit de dem den denna deras dess dessa det detta dig din dina ditt"
    " du där då efter ej eller en er era ett från för ha hade han hans har henne hennes hon honom hur här i icke"
    " in inom inte jag ju kan kunde man med mellan men mig min mina mitt mot mycket ni nu när någon något några"
    " och också om oss på samma sedan sig sin sina sitt själv skulle som så till under upp ut utan vad var vara"
    " varför varit vem vi vid vilka vilken vilket vår våra än är åt över",
    "tr": "acaba ama ancak arasında aslında az bana bazı belki ben bir biri birkaç biz bu bunu bunun böyle da daha de"
    " defa değil diye eden en etti gibi göre hangi hem hep her hiç ile ise için kadar karşı kaç ki kim kimin mi"
    " mu mü mı nasıl ne neden nerede niye o olan olarak oldu olduğu olduğunu olup onlar onu onun sen siz sonra"
    " tarafından tüm ve veya ya yani zaman çok çünkü önce şey şu",
}
STOP_WORDS = {language: frozenset(words.split()) for language, words in _LISTS.items()}
"""Case-folded, not stemmed. A language without a list has no stop words and cannot be detected by them."""
