/* HIGH rows, of the numbers `which`, columns c to c + 2·FLOATS of which `wide` are there: all where WHOLE; and as many
   α as there are, one where ONE. Included by fused_float.h. */
static void TILE(const block_job *job, const size_t *which, size_t c, size_t wide, checks_16 *checks)
{
    const size_t rank = job->rank, columns = job->columns;
    const float *near_panel = panel_at(job, c), *far_panel = panel_at(job, c + FLOATS), *left[HIGH];
    const uint16_t *in[HIGH];
    const size_t alphas = ONE ? 1 : job->alphas;
    uint16_t padded[2 * FLOATS];
    floats sum[HIGH][2], whole[HIGH][2];
    words fine = checks->fine;
    signs same = {0};

    EACH for (int i = 0; i < HIGH; i++)
    {
        left[i] = job->left + which[i] * rank;
        in[i] = (const uint16_t *)job->in + which[i] * columns + c;
        sum[i][0] = sum[i][1] = whole[i][0] = whole[i][1] = all_floats(0);
    }
    for (size_t k = 0, end = 0; k < rank;) {
        if (k) {
            EACH for (int i = 0; i < HIGH; i++)
            {
                whole[i][0] += sum[i][0];
                whole[i][1] += sum[i][1];
                sum[i][0] = sum[i][1] = all_floats(0);
            }
        }
        end = k + CHAIN < rank ? k + CHAIN : rank;
        for (; k < end; k++) {
            floats near = *(const loose_floats *)(near_panel + k * GROUP);
            floats far = *(const loose_floats *)(far_panel + k * GROUP);
            EACH for (int i = 0; i < HIGH; i++)
            {
                floats own = all_floats(left[i][k]);
                sum[i][0] = add_times_floats(own, near, sum[i][0]);
                sum[i][1] = add_times_floats(own, far, sum[i][1]);
            }
        }
    }
    if (rank > CHAIN)
        EACH for (int i = 0; i < HIGH; i++)
        {
            sum[i][0] += whole[i][0];
            sum[i][1] += whole[i][1];
        }

    floats norms[2] = {*(const loose_floats *)(job->right_norm + c), *(const loose_floats *)(job->right_norm + c + FLOATS)};
    floats unit = all_floats((float)(3 * FLOAT_UNIT * WIDER)), tiny = all_floats((float)job->tiny);
    EACH for (int i = 0; i < HIGH; i++)
    {
        const uint16_t *old = in[i];
        const float length = (float)job->left_norm[which[i]];
        if (!WHOLE) {
            for (size_t j = 0; j < 2 * FLOATS; j++)
                padded[j] = j < wide ? old[j] : 0x3C00; /* neither tiny nor large */
            old = padded;
        }
        halves near = *(const loose_halves *)old, far = *(const loose_halves *)(old + FLOATS);
        words stored[2] = {__builtin_convertvector(near, words), __builtin_convertvector(far, words)};
        floats w[2] = {VECTOR_FROM(near), VECTOR_FROM(far)};
        for (size_t a = 0; a < alphas; a++) {
            floats times = all_floats(checks->times[a]), error = all_floats(checks->error[a] * length);
            words low[2], differ[2], any = {0};
            EACH for (int v = 0; v < 2; v++)
            {
                floats x = add_times_floats(times, sum[i][v], w[v]), size = size_floats(x);
                floats reach = add_times_floats(error, norms[v], add_times_floats(unit, size, tiny));
                low[v] = VECTOR_TO(x - reach, x + reach, &differ[v]);
                fine &= (words)(size < LIMIT);
                same += (signs)(low[v] == stored[v]);
                any |= differ[v];
            }
            uint16_t *out = (uint16_t *)job->out[a] + which[i] * columns + c, beside[2 * FLOATS];
            store_halves(WHOLE ? out : beside, low[0], low[1]);
            if (!WHOLE)
                memcpy(out, beside, wide * sizeof *out);
            if (!ONE) {
                checks->same[a] += same;
                same = (signs){0};
            }
            if (any_set(any))
                for (size_t j = 0; j < wide; j++)
                    if (differ[j / FLOATS][j % FLOATS])
                        AGAIN(job, a, which[i], c + j, in[i][j], out + j);
        }
    }
    checks->fine = fine;
    if (ONE)
        checks->same[0] += same;
}
