# SPDX-License-Identifier: GPL-2.0
#
# Prints what C files define, without comments and layout. `vet` calls it:
#
#     awk -v root=SRCTREE/ -f c-text.awk vetted SRCTREE/FILE…
#
# For each name in the list `vetted` it prints
#
#     text FILE NAME HASH     for the definitions of NAME in FILE; HASH is `absent` without any
#     uses FILE NAME          for each FILE whose code has the identifier NAME
#
# A definition is a macro, or a function, object or type with a body in braces. The hash covers all
# definitions of a name, for example those below an `#ifdef` and its `#else`. Its input are their
# tokens, separated by a space. Each preprocessor directive has a line of its own. Conditional
# directives around a definition do not belong to it.

# Separates all operators, so that `a=b` becomes `a = b`.
function separate(code) {
	gsub(/->|\+\+|--|<<=|>>=|<<|>>|[-<>=!+*\/%&|^]=|&&|\|\||##|\.\.\.|[^A-Za-z0-9_ \t]/, " & ", code)
	return code
}

# Returns the tokens of a line, without comments. A literal is one token.
function tokens(line,    out, start, literal) {
	out = ""
	while (line != "") {
		if (in_comment) {
			start = index(line, "*/")
			if (!start)
				return out
			in_comment = 0
			line = substr(line, start + 2)
			out = out " "
			continue
		}
		if (!match(line, /"|'|\/\*|\/\//))
			return out separate(line)
		out = out separate(substr(line, 1, RSTART - 1))
		start = substr(line, RSTART, RLENGTH)
		line = substr(line, RSTART)
		if (start == "//")
			return out
		if (start == "/*") {
			in_comment = 1
			line = substr(line, 3)
		} else if (match(line, /^"([^"\\]|\\.)*"/) || match(line, /^'([^'\\]|\\.)+'/)) {
			literal = substr(line, 1, RLENGTH)
			line = substr(line, RLENGTH + 1)
			gsub(/[ \t]/, "\001", literal)
			out = out " " literal " "
		} else {
			line = substr(line, 2)
			out = out " " start " "
		}
	}
	return out
}

# Records that the previous token may be the name of the current declaration.
function candidate() {
	if ((file, previous) in wanted)
		names = names " " previous
}

function next_declaration() {
	declaration = names = previous = before_previous = ""
	depth = parentheses = 0
}

function end_definition(    list, count, i) {
	count = split(names, list, " ")
	for (i = 1; i <= count; i++)
		text[file, list[i]] = text[file, list[i]] declaration "\n"
	next_declaration()
}

function directive(    line, i) {
	line = ""
	for (i = 1; i <= NF; i++)
		line = line $i " "
	if ($2 == "define" && (file, $3) in wanted)
		text[file, $3] = text[file, $3] line "\n"
	if (depth)
		declaration = declaration "\n" line "\n"
	else
		next_declaration()
}

function code(token) {
	if (depth) {
		if (names != "")
			declaration = declaration token " "
		if (token == "{")
			depth++
		else if (token == "}" && !--depth)
			end_definition()
		return
	}

	declaration = declaration token " "
	if (token == ")") {
		parentheses--
	} else if (token == "(") {
		if (!parentheses++)
			candidate()
	} else if (!parentheses) {
		if (token == "=" || token == "[")
			candidate()
		if (token == "{" && before_previous ~ /^(struct|union|enum)$/)
			candidate()
		if (token == "{")
			depth = 1
		if (token == ";")
			next_declaration()
	}
	before_previous = previous
	previous = token
}

# The list.
FILENAME == ARGV[1] {
	if (/^\[/) {
		section = substr($1, 2)
		subject = $2
		sub(/\].*/, "", subject)
		if (section == "callers")
			callees[subject] = 1
	} else if (section == "text" && NF && !/^#/ && !((subject, $1) in wanted)) {
		wanted[subject, $1] = 1
		order[++pieces] = subject " " $1
	}
	next
}

FNR == 1 {
	file = substr(FILENAME, length(root) + 1)
	in_comment = 0
	spliced = ""
	next_declaration()
}

{
	line = spliced $0
	spliced = ""
	if (line ~ /\\$/) {
		spliced = substr(line, 1, length(line) - 1)
		next
	}

	is_directive = !in_comment && line ~ /^[ \t]*#/
	# A parenthesis directly after the name makes a macro with arguments.
	if (is_directive && match(line, /^[ \t]*#[ \t]*define[ \t]+[A-Za-z0-9_]+\(/))
		line = substr(line, 1, RLENGTH - 1) " @ " substr(line, RLENGTH)
	$0 = tokens(line)

	for (i = 1; i <= NF; i++)
		if ($i in callees)
			uses[file " " $i] = 1

	if (is_directive)
		directive()
	else
		for (i = 1; i <= NF; i++)
			code($i)
}

END {
	for (i = 1; i <= pieces; i++) {
		split(order[i], piece, " ")
		if ((piece[1], piece[2]) in text) {
			command = "printf 'text " order[i] " '; sha256sum"
			printf "%s", text[piece[1], piece[2]] | command
			close(command)
		} else {
			missing[order[i]] = 1
		}
	}
	# After the lines above, which another process writes to the same file.
	for (name in missing)
		print "text " name " absent"
	for (use in uses)
		print "uses " use
}
