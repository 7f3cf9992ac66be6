/*#
How the keys of a row are cut, and the parts added; for the kernels of attention, which must agree in it to the bit.

    segment_keys                           keys of a segment, a multiple of the tile
    fold(largest, sum, other_largest, other_sum)
                                           adds a segment's largest score and sum to those of the segments before it;
                                           then `here` and `there` are what values of the two are to be multiplied by
#*/
/*% set segment_keys = 512 %*/
/*% macro fold(largest, sum, other_largest, other_sum) -%*/
let most = max(${ largest }, ${ other_largest });
                let here = exp(${ largest } - most);
                let there = exp(${ other_largest } - most);
                let other_sum = ${ other_sum } * there;
                ${ largest } = most;
                ${ sum } = fma(${ sum }, here, other_sum);
/*%- endmacro %*/
