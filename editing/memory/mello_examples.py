"""Worked questions that show a model how MeLLo takes a question apart; written for this project.

Of two to four hops, with facts that contradict the tentative answer and facts that do not.
"""

EXAMPLES = """\
Question: What is the capital of the country where the Rialto Bridge stands?
Subquestion: In which country does the Rialto Bridge stand?
Generated answer: The Rialto Bridge stands in Italy.
Retrieved fact: The Rialto Bridge is located in the country of Portugal.
Retrieved fact contradicts to generated answer, so the intermediate answer is: Portugal
Subquestion: What is the capital of Portugal?
Generated answer: The capital of Portugal is Lisbon.
Retrieved fact: The capital of Ghana is Kumasi.
Retrieved fact does not contradict to generated answer, so the intermediate answer is: Lisbon
Final answer: Lisbon

Question: Which language is spoken where the author of The Magic Mountain was born?
Subquestion: Who is the author of The Magic Mountain?
Generated answer: The author of The Magic Mountain is Thomas Mann.
Retrieved fact: The author of The Castle is Selma Lagerlof.
Retrieved fact does not contradict to generated answer, so the intermediate answer is: Thomas Mann
Subquestion: Where was Thomas Mann born?
Generated answer: Thomas Mann was born in Lubeck.
Retrieved fact: Thomas Mann was born in the city of Krakow.
Retrieved fact contradicts to generated answer, so the intermediate answer is: Krakow
Subquestion: Which language is spoken in Krakow?
Generated answer: The language spoken in Krakow is Polish.
Retrieved fact: The official language of Peru is Welsh.
Retrieved fact does not contradict to generated answer, so the intermediate answer is: Polish
Final answer: Polish

Question: On which continent is the headquarters of the maker of the Corolla?
Subquestion: Which company makes the Corolla?
Generated answer: The Corolla is made by Toyota.
Retrieved fact: The Corolla is produced by Renault.
Retrieved fact contradicts to generated answer, so the intermediate answer is: Renault
Subquestion: In which city is the headquarters of Renault?
Generated answer: The headquarters of Renault is in Boulogne-Billancourt.
Retrieved fact: The headquarters of Renault is in the city of Nairobi.
Retrieved fact contradicts to generated answer, so the intermediate answer is: Nairobi
Subquestion: On which continent is Nairobi?
Generated answer: Nairobi is in Africa.
Retrieved fact: Lake Baikal is located on the continent of Europe.
Retrieved fact does not contradict to generated answer, so the intermediate answer is: Africa
Final answer: Africa

Question: What is the currency of the country of citizenship of the founder of the sport that Jonah Lomu played?
Subquestion: Which sport did Jonah Lomu play?
Generated answer: Jonah Lomu played rugby.
Retrieved fact: Jonah Lomu plays the sport of basketball.
Retrieved fact contradicts to generated answer, so the intermediate answer is: basketball
Subquestion: Who founded basketball?
Generated answer: Basketball was founded by James Naismith.
Retrieved fact: Chess was created by Ada Lovelace.
Retrieved fact does not contradict to generated answer, so the intermediate answer is: James Naismith
Subquestion: What is the country of citizenship of James Naismith?
Generated answer: James Naismith is a citizen of Canada.
Retrieved fact: James Naismith is a citizen of Japan.
Retrieved fact contradicts to generated answer, so the intermediate answer is: Japan
Subquestion: What is the currency of Japan?
Generated answer: The currency of Japan is the yen.
Retrieved fact: The currency of Chile is the krone.
Retrieved fact does not contradict to generated answer, so the intermediate answer is: yen
Final answer: yen"""
