"""The scripts of `limbeck completion`, by shell.

Each asks `limbeck completion --words`, and takes the answer as text: no word is expanded or run.
"""

__all__ = ["SCRIPTS"]

_BASH = r"""# limbeck's words for bash
_limbeck() {
    local line=${COMP_LINE:0:COMP_POINT} end=${COMP_WORDS[COMP_CWORD]} word
    [[ $line ]] || line="${COMP_WORDS[*]:0:COMP_CWORD+1}"
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <("${1/#\~/$HOME}" completion --words bash "$line" "$end" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[:=/] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _limbeck limbeck
"""

_ZSH = r"""# limbeck's words for zsh
_limbeck() {
    local -a answer ended open
    local line word about
    answer=("${(@f)$(${(Q)words[1]} completion --words list \
        "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    for line in "${(@)answer[2,-1]}"; do
        word=${line%%$'\t'*}
        about=${line#$word}
        line="${word//:/\\:}${about:+:${about#$'\t'}}"
        if [[ $word == *[:=] ]]; then open+=("$line"); else ended+=("$line"); fi
    done
    (( $#ended )) && _describe -t words word ended
    (( $#open )) && _describe -t words word open -S ''
    if [[ $answer[1] == files ]]; then
        compset -P '--*='
        _files
    fi
}
compdef _limbeck limbeck
"""

_FISH = r"""# limbeck's words for fish
function __limbeck
    set -l given (commandline -opc)
    set -l now (commandline -ct)
    set -l answer ($given[1] completion --words list $given[2..] "$now" 2>/dev/null)
    for line in $answer[2..]
        echo $line
    end
    if test "$answer[1]" = files
        __fish_complete_path (string replace -r -- '^--[^=]*=' '' "$now")
    end
end
complete -c limbeck -f -a '(__limbeck)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
