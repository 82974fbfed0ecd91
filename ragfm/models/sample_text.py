"""English prose for timing and comparing models, so that no measurement depends on the user's documents."""

SAMPLE_TEXT = """\
A library that answers questions has to find the right page before it can say anything useful. The oldest way is the
index at the back of a book: a list of words, each with the pages on which it appears. A reader looks up two or three
words, keeps the pages that the lists share, and turns to the first of them. Computers do the same with inverted files.
They count how often each word appears in each passage, give rare words more weight than common ones, and correct for
the length of the passage. The method is fifty years old, runs on any machine, and is still hard to beat when the
question contains a part number, a surname or an error code.

The second way compares meanings rather than words. A neural network reads a passage and returns a few hundred numbers.
Passages about the same subject receive similar numbers, even if they share no word at all. A question about "time off
after a birth" can then find a passage about parental leave. The price is that numbers blur details: the vectors of
version 3.1 and version 3.2 of a manual are almost equal, although the difference may be all that matters.

Most systems therefore combine both. Each method produces a ranking, the scores are scaled to the same range, and a
weighted sum decides. The weight depends on the collection. For encyclopedia articles in English the vectors deserve
more than half of it. For log files, contracts and spare part catalogues the words do.

Documents are rarely clean. A report of two hundred pages contains a table of contents, running headers, footnotes,
and tables that continue over three pages. The parser must recover the reading order from the positions of letters on
a page. It must notice that a number belongs to the column "2023" and the row "Operating income", and it must keep both
labels with the number, because a reader model that sees "12.4" alone cannot know what it means. Scanned pages need
optical character recognition first, which confuses the letter O with the digit zero about once per page.

After parsing, the text is cut into chunks. A chunk should be small enough to be about one thing and large enough to
make sense on its own. Many teams start with two hundred words and an overlap of twenty. Better cuts follow the
structure of the document: a section, a list with its introduction, a table row with its header. Each chunk keeps the
path of headings above it, so that "It lasts four weeks" can be found by somebody who asks about the notice period.

The reader model receives the question, a short instruction and the best passages. Its window is limited. A small model
on a laptop holds about four thousand tokens, which is roughly three thousand words, and it becomes slower with each of
them. The first part of the work, reading the prompt, uses all processor cores at once and is limited by arithmetic.
The second part, writing the answer, produces one token at a time and is limited by memory: for every token, all
weights of the model travel from memory to the processor. A model of four gigabytes on a machine that moves forty
gigabytes per second cannot write more than ten tokens per second, however many cores it has. Quantization helps
because it makes the weights smaller. With four bits per weight the loss in quality is usually below what users notice.

Serving several users at once changes the picture. When eight requests are evaluated together, the weights are read
once for all of them, and the total speed rises by a factor of three to five. Requests that begin with the same
instruction can share the part of the cache that belongs to it. A queue decides who is next, and a fair queue prevents
one user with a hundred questions from blocking everybody else.

An answer without a source is an opinion. For every sentence the system looks for the passage that supports it, stores
the exact position of the quotation in the document, and shows it next to the answer. If the numbers in the sentence
differ from those in the passage, the sentence is marked. If no passage supports it, the honest answer is that the
documents do not say. Users accept this more readily than a confident mistake, provided that it does not happen when
the answer is plainly there.

Finally, everything has to be measured. A set of a hundred real questions, each with the correct answer and its page,
is worth more than any benchmark on the internet. It shows whether a new parser finds more tables, whether a larger
model is worth its cost, and whether last week's change made anything worse. Confidence intervals keep the team from
celebrating noise: with a hundred questions, a difference of three points means very little. Teams that measure every
change improve slowly and steadily. Teams that judge by three favourite examples move in circles.

Updates are the last part of the story. Documents change every day, and an index that is a week old gives wrong answers
with great confidence. A connector lists what the source contains, compares the revision of each document with the one
that was indexed, and fetches only what is new. Deleted documents must disappear from the index as well, and access
rights have to follow at once, because a passage that somebody may no longer see must not appear in an answer. A crash
in the middle of an update must leave the old state or the new one, and never a mixture of the two.
"""
