"""Lines that people have in their `.env`, and what Hermes makes of them.

The variables are what the loaders of Hermes 0.20 and 0.22 put into the
environment, with `OUTER=outer` set before; `DIFFERENT` holds where a host differs.
"""

from __future__ import annotations

from typing import Dict, Tuple

CASES: Dict[str, Tuple[bytes, Dict[str, str]]] = {
    "plain": (
        b"HINDSIGHT_API_KEY=value\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "no newline at the end": (
        b"HINDSIGHT_API_KEY=value",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "empty": (
        b"HINDSIGHT_API_KEY=\n",
        {"HINDSIGHT_API_KEY": ""},
    ),
    "empty, then blanks": (
        b"HINDSIGHT_API_KEY=   \n",
        {"HINDSIGHT_API_KEY": ""},
    ),
    "no equals sign": (
        b"HINDSIGHT_API_KEY\n",
        {},
    ),
    "blanks around equals": (
        b"HINDSIGHT_API_KEY = value \n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "tabs around equals": (
        b"HINDSIGHT_API_KEY\t=\tvalue\t\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "indented": (
        b"   HINDSIGHT_API_KEY=value\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "comment after two blanks": (
        b"HINDSIGHT_API_KEY=value  # comment\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "comment after one blank": (
        b"HINDSIGHT_API_KEY=value #comment\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "hash inside": (
        b"HINDSIGHT_API_KEY=val#ue\n",
        {"HINDSIGHT_API_KEY": "val#ue"},
    ),
    "only a comment as value": (
        b"HINDSIGHT_API_KEY= # comment\n",
        {"HINDSIGHT_API_KEY": "# comment"},
    ),
    "hash right after equals": (
        b"HINDSIGHT_API_KEY=#value\n",
        {"HINDSIGHT_API_KEY": "#value"},
    ),
    "tab before comment": (
        b"HINDSIGHT_API_KEY=value\t# comment\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "commented out": (
        b"# HINDSIGHT_API_KEY=value\n",
        {},
    ),
    "commented out, indented": (
        b"  #HINDSIGHT_API_KEY=value\n",
        {},
    ),
    "double quotes": (
        b'HINDSIGHT_API_KEY="value"\n',
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "double quotes and comment": (
        b'HINDSIGHT_API_KEY="value" # comment\n',
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "double quotes and hash inside": (
        b'HINDSIGHT_API_KEY="val # ue"\n',
        {"HINDSIGHT_API_KEY": "val # ue"},
    ),
    "double quotes with blanks": (
        b'HINDSIGHT_API_KEY="  value  "\n',
        {"HINDSIGHT_API_KEY": "  value  "},
    ),
    "single quotes": (
        b"HINDSIGHT_API_KEY='value'\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "single quotes and comment": (
        b"HINDSIGHT_API_KEY='value' # comment\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "empty double quotes": (
        b'HINDSIGHT_API_KEY=""\n',
        {"HINDSIGHT_API_KEY": ""},
    ),
    "empty single quotes": (
        b"HINDSIGHT_API_KEY=''\n",
        {"HINDSIGHT_API_KEY": ""},
    ),
    "escapes in double quotes": (
        b'HINDSIGHT_API_KEY="a\\tb\\nc\\"d\\\\e"\n',
        {"HINDSIGHT_API_KEY": 'a\tb\nc"d\\e'},
    ),
    "other escapes in double quotes": (
        b'HINDSIGHT_API_KEY="a\\xb\\ud"\n',
        {"HINDSIGHT_API_KEY": "a\\xb\\ud"},
    ),
    "escapes in single quotes": (
        b"HINDSIGHT_API_KEY='a\\tb\\'c\\\\d'\n",
        {"HINDSIGHT_API_KEY": "a\\tb'c\\d"},
    ),
    "escapes without quotes": (
        b"HINDSIGHT_API_KEY=a\\tb\\nc\n",
        {"HINDSIGHT_API_KEY": "a\\tb\\nc"},
    ),
    "quote inside": (
        b'HINDSIGHT_API_KEY=va"lue\n',
        {"HINDSIGHT_API_KEY": 'va"lue'},
    ),
    "quotes inside": (
        b'HINDSIGHT_API_KEY=va"l"ue\n',
        {"HINDSIGHT_API_KEY": 'va"l"ue'},
    ),
    "text after the quotes": (
        b'HINDSIGHT_API_KEY="val"ue\nHINDSIGHT_BANK_ID=next\n',
        {"HINDSIGHT_BANK_ID": "next"},
    ),
    "unterminated double": (
        b'HINDSIGHT_API_KEY="value\nHINDSIGHT_BANK_ID=next\n',
        {"HINDSIGHT_BANK_ID": "next"},
    ),
    "unterminated single": (
        b"HINDSIGHT_API_KEY='value\nHINDSIGHT_BANK_ID=next\n",
        {"HINDSIGHT_BANK_ID": "next"},
    ),
    "double quotes over lines": (
        b'HINDSIGHT_API_KEY="val\nue"\nHINDSIGHT_BANK_ID=next\n',
        {"HINDSIGHT_API_KEY": "val\nue", "HINDSIGHT_BANK_ID": "next"},
    ),
    "single quotes over lines": (
        b"HINDSIGHT_API_KEY='val\nue'\nHINDSIGHT_BANK_ID=next\n",
        {"HINDSIGHT_API_KEY": "val\nue", "HINDSIGHT_BANK_ID": "next"},
    ),
    "an assignment inside quotes over lines": (
        b'OTHER="x\nHINDSIGHT_API_KEY=inner\n"\nHINDSIGHT_BANK_ID=next\n',
        {"HINDSIGHT_BANK_ID": "next"},
    ),
    "export": (
        b"export HINDSIGHT_API_KEY=value\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "export and tabs": (
        b"export\tHINDSIGHT_API_KEY=value\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "export and blanks around equals": (
        b"export  HINDSIGHT_API_KEY = value\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "export with quotes": (
        b'export HINDSIGHT_API_KEY="value" # comment\n',
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "set": (
        b"set HINDSIGHT_API_KEY=value\n",
        {},
    ),
    "quoted key": (
        b"'HINDSIGHT_API_KEY'=value\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "double-quoted key": (
        b'"HINDSIGHT_API_KEY"=value\n',
        {},
    ),
    "colon": (
        b"HINDSIGHT_API_KEY: value\n",
        {},
    ),
    "equals inside": (
        b"HINDSIGHT_API_KEY=a=b==\n",
        {"HINDSIGHT_API_KEY": "a=b=="},
    ),
    "twice": (
        b"HINDSIGHT_API_KEY=one\nHINDSIGHT_API_KEY=two\n",
        {"HINDSIGHT_API_KEY": "two"},
    ),
    "twice, then empty": (
        b"HINDSIGHT_API_KEY=one\nHINDSIGHT_API_KEY=\n",
        {"HINDSIGHT_API_KEY": ""},
    ),
    "twice, then without equals": (
        b"HINDSIGHT_API_KEY=one\nHINDSIGHT_API_KEY\n",
        {},
    ),
    "reference before": (
        b"OTHER=abc\nHINDSIGHT_API_KEY=${OTHER}-x\n",
        {"HINDSIGHT_API_KEY": "abc-x"},
    ),
    "reference after": (
        b"HINDSIGHT_API_KEY=${OTHER}-x\nOTHER=abc\n",
        {"HINDSIGHT_API_KEY": "-x"},
    ),
    "reference to the environment": (
        b"HINDSIGHT_API_KEY=${OUTER}-x\n",
        {"HINDSIGHT_API_KEY": "outer-x"},
    ),
    "reference with a default": (
        b"HINDSIGHT_API_KEY=${MISSING:-fallback}\n",
        {"HINDSIGHT_API_KEY": "fallback"},
    ),
    "reference with an empty default": (
        b"HINDSIGHT_API_KEY=x${MISSING:-}\n",
        {"HINDSIGHT_API_KEY": "x"},
    ),
    "reference to nothing": (
        b"HINDSIGHT_API_KEY=x${MISSING}\n",
        {"HINDSIGHT_API_KEY": "x"},
    ),
    "reference in single quotes": (
        b"OTHER=abc\nHINDSIGHT_API_KEY='${OTHER}'\n",
        {"HINDSIGHT_API_KEY": "abc"},
    ),
    "reference in double quotes": (
        b'OTHER=abc\nHINDSIGHT_API_KEY="${OTHER}"\n',
        {"HINDSIGHT_API_KEY": "abc"},
    ),
    "reference without braces": (
        b"OTHER=abc\nHINDSIGHT_API_KEY=$OTHER\n",
        {"HINDSIGHT_API_KEY": "$OTHER"},
    ),
    "reference to itself": (
        b"HINDSIGHT_API_KEY=${HINDSIGHT_API_KEY}x\n",
        {"HINDSIGHT_API_KEY": "x"},
    ),
    "reference that the environment has too": (
        b"OUTER=inner\nHINDSIGHT_API_KEY=${OUTER}\n",
        {"HINDSIGHT_API_KEY": "inner"},
    ),
    "unclosed reference": (
        b"HINDSIGHT_API_KEY=${OTHER\n",
        {"HINDSIGHT_API_KEY": "${OTHER"},
    ),
    "UTF-8 BOM": (
        b"\xef\xbb\xbfHINDSIGHT_API_KEY=value\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "UTF-8 BOM before a comment": (
        b"\xef\xbb\xbf# first\nHINDSIGHT_API_KEY=value\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "two BOMs": (
        b"\xef\xbb\xbf\xef\xbb\xbfHINDSIGHT_API_KEY=value\n",
        {},
    ),
    "UTF-16": (
        b"\xff\xfeH\x00I\x00N\x00D\x00S\x00I\x00G\x00H\x00T\x00_\x00A\x00P\x00I\x00_\x00K\x00E\x00Y\x00=\x00v\x00a\x00l\x00u\x00e\x00\n\x00",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "UTF-16 big-endian": (
        b"\xfe\xff\x00H\x00I\x00N\x00D\x00S\x00I\x00G\x00H\x00T\x00_\x00A\x00P\x00I\x00_\x00K\x00E\x00Y\x00=\x00v\x00a\x00l\x00u\x00e\x00\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "UTF-16 without BOM": (
        b"H\x00I\x00N\x00D\x00S\x00I\x00G\x00H\x00T\x00_\x00A\x00P\x00I\x00_\x00K\x00E\x00Y\x00=\x00v\x00a\x00l\x00u\x00e\x00\n\x00",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "CRLF": (
        b"HINDSIGHT_API_KEY=value\r\nHINDSIGHT_BANK_ID=next\r\n",
        {"HINDSIGHT_API_KEY": "value", "HINDSIGHT_BANK_ID": "next"},
    ),
    "CRLF and quotes": (
        b'HINDSIGHT_API_KEY="value"\r\nHINDSIGHT_BANK_ID=next\r\n',
        {"HINDSIGHT_API_KEY": "value", "HINDSIGHT_BANK_ID": "next"},
    ),
    "CRLF and comment": (
        b"HINDSIGHT_API_KEY=value # c\r\nHINDSIGHT_BANK_ID=next\r\n",
        {"HINDSIGHT_API_KEY": "value", "HINDSIGHT_BANK_ID": "next"},
    ),
    "CRLF in quotes over lines": (
        b'HINDSIGHT_API_KEY="val\r\nue"\r\nHINDSIGHT_BANK_ID=next\r\n',
        {"HINDSIGHT_API_KEY": "val\nue", "HINDSIGHT_BANK_ID": "next"},
    ),
    "lone CR": (
        b"HINDSIGHT_API_KEY=value\rHINDSIGHT_BANK_ID=next\r",
        {"HINDSIGHT_API_KEY": "value", "HINDSIGHT_BANK_ID": "next"},
    ),
    "form feed before": (
        b"\x0cHINDSIGHT_API_KEY=value\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "form feed inside": (
        b"HINDSIGHT_RETAIN_SOURCE=val\x0cue\nHINDSIGHT_BANK_ID=next\n",
        {"HINDSIGHT_RETAIN_SOURCE": "val\x0cue", "HINDSIGHT_BANK_ID": "next"},
    ),
    "form feed inside quotes": (
        b'HINDSIGHT_RETAIN_SOURCE="val\x0cue"\nHINDSIGHT_BANK_ID=next\n',
        {"HINDSIGHT_RETAIN_SOURCE": "val\x0cue", "HINDSIGHT_BANK_ID": "next"},
    ),
    "vertical tab inside": (
        b"HINDSIGHT_RETAIN_SOURCE=val\x0bue\nHINDSIGHT_BANK_ID=next\n",
        {"HINDSIGHT_RETAIN_SOURCE": "val\x0bue", "HINDSIGHT_BANK_ID": "next"},
    ),
    "U+2028 inside": (
        b"HINDSIGHT_RETAIN_SOURCE=val\xe2\x80\xa8ue\nHINDSIGHT_BANK_ID=next\n",
        {"HINDSIGHT_RETAIN_SOURCE": "val\u2028ue", "HINDSIGHT_BANK_ID": "next"},
    ),
    "U+0085 inside": (
        b"HINDSIGHT_RETAIN_SOURCE=val\xc2\x85ue\nHINDSIGHT_BANK_ID=next\n",
        {"HINDSIGHT_RETAIN_SOURCE": "val\x85ue", "HINDSIGHT_BANK_ID": "next"},
    ),
    "U+2028 before": (
        b"\xe2\x80\xa8HINDSIGHT_RETAIN_SOURCE=value\n",
        {"HINDSIGHT_RETAIN_SOURCE": "value"},
    ),
    "no-break space before": (
        b"\xc2\xa0HINDSIGHT_API_KEY=value\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "no-break space around equals": (
        b"HINDSIGHT_API_KEY\xc2\xa0=\xc2\xa0value\xc2\xa0\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "no-break space inside": (
        b"HINDSIGHT_RETAIN_SOURCE=val\xc2\xa0ue\n",
        {"HINDSIGHT_RETAIN_SOURCE": "val\xa0ue"},
    ),
    "no-break space and hash": (
        b"HINDSIGHT_RETAIN_SOURCE=val\xc2\xa0# ue\n",
        {"HINDSIGHT_RETAIN_SOURCE": "val"},
    ),
    "ideographic space around": (
        b"HINDSIGHT_RETAIN_SOURCE=\xe3\x80\x80value\xe3\x80\x80\n",
        {"HINDSIGHT_RETAIN_SOURCE": "value"},
    ),
    "zero-width space in a key": (
        b"HINDSIGHT_API_KEY=val\xe2\x80\x8bue\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "zero-width space around a key": (
        b"HINDSIGHT_API_KEY=\xe2\x80\x8bvalue\xe2\x80\x8b\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "zero-width space around a text": (
        b"HINDSIGHT_BANK_ID=\xe2\x80\x8bvalue\xe2\x80\x8b\n",
        {"HINDSIGHT_BANK_ID": "\u200bvalue\u200b"},
    ),
    "zero-width space before the name": (
        b"\xe2\x80\x8bHINDSIGHT_API_KEY=value\n",
        {},
    ),
    "zero-width space after the name": (
        b"HINDSIGHT_API_KEY\xe2\x80\x8b=value\n",
        {},
    ),
    "word joiner and BOM in a key": (
        b"HINDSIGHT_API_KEY=\xe2\x81\xa0val\xef\xbb\xbfue\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "letters of another script in a key": (
        b"HINDSIGHT_API_KEY=v\xd0\xb0lu\xd0\xb5\n",
        {"HINDSIGHT_API_KEY": "vlu"},
    ),
    "no ASCII in a key": (
        b"HINDSIGHT_API_KEY=\xce\xa9\n",
        {"HINDSIGHT_API_KEY": ""},
    ),
    "other characters in an LLM key": (
        b"HINDSIGHT_LLM_API_KEY=val\xca\x8bue\n",
        {"HINDSIGHT_LLM_API_KEY": "value"},
    ),
    "UTF-8 in a text": (
        b"HINDSIGHT_RETAIN_SOURCE=caf\xc3\xa9\n",
        {"HINDSIGHT_RETAIN_SOURCE": "café"},
    ),
    "latin-1 in a text": (
        b"HINDSIGHT_RETAIN_SOURCE=caf\xe9\n",
        {"HINDSIGHT_RETAIN_SOURCE": "café"},
    ),
    "latin-1 elsewhere": (
        b"OTHER=caf\xe9\nHINDSIGHT_RETAIN_SOURCE=value\n",
        {"HINDSIGHT_RETAIN_SOURCE": "value"},
    ),
    "latin-1 and UTF-8": (
        b"OTHER=caf\xe9\nHINDSIGHT_RETAIN_SOURCE=caf\xc3\xa9\n",
        {"HINDSIGHT_RETAIN_SOURCE": "cafÃ©"},
    ),
    "latin-1 first": (
        b"\xe9=1\nHINDSIGHT_RETAIN_SOURCE=value\n",
        {"HINDSIGHT_RETAIN_SOURCE": "value"},
    ),
    "latin-1 after a BOM": (
        b"\xef\xbb\xbfHINDSIGHT_API_KEY=value\nOTHER=caf\xe9\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "NUL inside": (
        b"HINDSIGHT_API_KEY=val\x00ue\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "NUL before": (
        b"\x00HINDSIGHT_API_KEY=value\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "control character": (
        b"HINDSIGHT_RETAIN_SOURCE=val\x07ue\n",
        {"HINDSIGHT_RETAIN_SOURCE": "val\x07ue"},
    ),
    "garbage before": (
        b"broken line\nHINDSIGHT_API_KEY=value\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "garbage between": (
        b"HINDSIGHT_BANK_ID=next\n==\n!\nHINDSIGHT_API_KEY=value\n",
        {"HINDSIGHT_BANK_ID": "next", "HINDSIGHT_API_KEY": "value"},
    ),
    "two names in a line": (
        b"HINDSIGHT_API_KEY=value HINDSIGHT_BANK_ID=next\n",
        {"HINDSIGHT_API_KEY": "value HINDSIGHT_BANK_ID=next"},
    ),
    "two names run together": (
        b"HINDSIGHT_API_KEY=valueHINDSIGHT_LLM_API_KEY=other\n",
        {"HINDSIGHT_API_KEY": "valueHINDSIGHT_LLM_API_KEY=other"},
    ),
    "placeholder": (
        b"HINDSIGHT_API_KEY=***\n",
        {"HINDSIGHT_API_KEY": "***"},
    ),
    "lower case": (
        b"hindsight_api_key=value\n",
        {},
    ),
    "a list": (
        b'HINDSIGHT_RETAIN_TAGS=["a","b"]\n',
        {"HINDSIGHT_RETAIN_TAGS": '["a","b"]'},
    ),
    "a list in single quotes": (
        b'HINDSIGHT_RETAIN_TAGS=\'["a", "b"]\'\n',
        {"HINDSIGHT_RETAIN_TAGS": '["a", "b"]'},
    ),
    "a URL": (
        b"HINDSIGHT_API_URL=http://h:1/p#frag\n",
        {"HINDSIGHT_API_URL": "http://h:1/p#frag"},
    ),
    "back quotes": (
        b"HINDSIGHT_API_KEY=`value`\n",
        {"HINDSIGHT_API_KEY": "`value`"},
    ),
    "dollar sign": (
        b"HINDSIGHT_API_KEY=va$lue$$\n",
        {"HINDSIGHT_API_KEY": "va$lue$$"},
    ),
    "section": (
        b"[hindsight]\nHINDSIGHT_API_KEY=value\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "semicolon": (
        b"HINDSIGHT_API_KEY=value; # c\n",
        {"HINDSIGHT_API_KEY": "value;"},
    ),
    "name with a dot": (
        b"X.Y=1\nHINDSIGHT_API_KEY=value\n",
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "line continuation": (
        b"HINDSIGHT_API_KEY=val\\\nue\nHINDSIGHT_BANK_ID=next\n",
        {"HINDSIGHT_API_KEY": "val\\", "HINDSIGHT_BANK_ID": "next"},
    ),
    "escaped quote at the end": (
        b'HINDSIGHT_API_KEY="value\\"\nHINDSIGHT_BANK_ID=next\n',
        {"HINDSIGHT_API_KEY": "value\\", "HINDSIGHT_BANK_ID": "next"},
    ),
    "escaped backslash at the end": (
        b'HINDSIGHT_API_KEY="value\\\\"\nHINDSIGHT_BANK_ID=next\n',
        {"HINDSIGHT_API_KEY": "value\\", "HINDSIGHT_BANK_ID": "next"},
    ),
    "indented continuation in quotes": (
        b'HINDSIGHT_RETAIN_SOURCE="val\n   ue"\nHINDSIGHT_BANK_ID=next\n',
        {"HINDSIGHT_RETAIN_SOURCE": "val\nue", "HINDSIGHT_BANK_ID": "next"},
    ),
    "blanks at a line's end in quotes": (
        b'HINDSIGHT_RETAIN_SOURCE="val   \nue"\nHINDSIGHT_BANK_ID=next\n',
        {"HINDSIGHT_RETAIN_SOURCE": "val\nue", "HINDSIGHT_BANK_ID": "next"},
    ),
    "blank lines in quotes": (
        b'HINDSIGHT_RETAIN_SOURCE="val\n  \nue"\nHINDSIGHT_BANK_ID=next\n',
        {"HINDSIGHT_RETAIN_SOURCE": "val\n  \nue", "HINDSIGHT_BANK_ID": "next"},
    ),
    "quoted blanks at the file's end": (
        b'HINDSIGHT_RETAIN_SOURCE="val  "',
        {"HINDSIGHT_RETAIN_SOURCE": "val  "},
    ),
    "unquoted blank before newline and reference": (
        b"A=x \nHINDSIGHT_RETAIN_SOURCE=${A}|\n",
        {"HINDSIGHT_RETAIN_SOURCE": "x|"},
    ),
    "references in a default": (
        b"HINDSIGHT_RETAIN_SOURCE=${NOPE:-a:b}\n",
        {"HINDSIGHT_RETAIN_SOURCE": "a:b"},
    ),
    "reference with a dash only": (
        b"HINDSIGHT_RETAIN_SOURCE=${NOPE-a}\n",
        {"HINDSIGHT_RETAIN_SOURCE": ""},
    ),
    "two references": (
        b"A=1\nB=2\nHINDSIGHT_RETAIN_SOURCE=${A}${B}\n",
        {"HINDSIGHT_RETAIN_SOURCE": "12"},
    ),
    "escaped reference": (
        b"A=1\nHINDSIGHT_RETAIN_SOURCE=\\${A}\n",
        {"HINDSIGHT_RETAIN_SOURCE": "\\1"},
    ),
    "reference to an empty": (
        b"A=\nHINDSIGHT_RETAIN_SOURCE=${A:-d}\n",
        {"HINDSIGHT_RETAIN_SOURCE": ""},
    ),
    "hash comment directly after quotes": (
        b'HINDSIGHT_API_KEY="value"#c\n',
        {"HINDSIGHT_API_KEY": "value"},
    ),
    "nothing but newlines": (
        b"\n\n\n",
        {},
    ),
    "empty file": (
        b"",
        {},
    ),
    "escaped single quote, then more": (
        b"HINDSIGHT_API_KEY='it\\'s'\nHINDSIGHT_BANK_ID=next\n",
        {"HINDSIGHT_API_KEY": "it's", "HINDSIGHT_BANK_ID": "next"},
    ),
    "backslash before the single quote": (
        b"HINDSIGHT_API_KEY='value\\\\'\nHINDSIGHT_BANK_ID='next'\n",
        {},
    ),
    "unicode escape in double quotes": (
        b'HINDSIGHT_RETAIN_SOURCE="\\u00e9"\n',
        {"HINDSIGHT_RETAIN_SOURCE": "\\u00e9"},
    ),
    "UTF-16, CRLF": (
        b"\xff\xfeH\x00I\x00N\x00D\x00S\x00I\x00G\x00H\x00T\x00_\x00A\x00P\x00I\x00_\x00K\x00E\x00Y\x00=\x00v\x00a\x00l\x00u\x00e\x00\r\x00\n\x00H\x00I\x00N\x00D\x00S\x00I\x00G\x00H\x00T\x00_\x00B\x00A\x00N\x00K\x00_\x00I\x00D\x00=\x00n\x00e\x00x\x00t\x00\r\x00\n\x00",
        {"HINDSIGHT_API_KEY": "value", "HINDSIGHT_BANK_ID": "next"},
    ),
}

_MARKED = "it takes a byte order mark for a part of the first name"
#: By minor version of Hermes: cases that it reads otherwise, and why that is not followed.
DIFFERENT: Dict[int, Dict[str, str]] = {
    19: {
        "UTF-8 BOM": _MARKED,
        "latin-1 after a BOM": _MARKED,
        "two names run together": "it splits a line where a name that it knows begins",
    },
    20: {},
    22: {"CRLF in quotes over lines": "it keeps the CR"},
}

#: What python-dotenv 1.2.3 and later make of the lines that they read otherwise. Hermes pins 1.2.2.
LATER: Dict[str, Dict[str, str]] = {
    "only a comment as value": {"HINDSIGHT_API_KEY": ""},
    "two BOMs": {"HINDSIGHT_API_KEY": "value"},
    "escaped quote at the end": {"HINDSIGHT_BANK_ID": "next"},
    "backslash before the single quote": {
        "HINDSIGHT_API_KEY": "value\\",
        "HINDSIGHT_BANK_ID": "next",
    },
}
